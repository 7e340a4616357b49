//! The common part of all methods that calibrate: from the request to the new model and its report.

mod dry_run;
mod needs;

use super::compare::Evaluation;
use super::folder::{BATCH, Job, borrowed, links_left_out, names, no_score, of_gpu, skipping};
use super::memory_needs::MemoryNeeds;
use super::plan::{Done, finished};
use super::prompts::prompt_lists;
use crate::error::{Error, Result, refuse};
use crate::footprint::Footprint;
use crate::format::{bytes, spelled};
use crate::machine::Product;
use crate::memory;
use crate::recorder::Recorder;
use crate::settings::{CalibrationSettings, Positive, SharedSettings};
use dry_run::DryRun;
use needs::{Fitted, Needs};
pub(super) use needs::{STATISTICS, plan};
use secateur_eval::{GroupReport, LayerReport, Report};
use secateur_models::files::{digest_of_texts, shown};
use secateur_models::{
    Group, ModelFolder, Observer, OutputFolder, Pipeline, Sampling, WeightBytes,
};
use secateur_nn::Placement;
use secateur_prune::{
    Allocation, Budget, Calibration, Factor, Fingerprint, GroupOutcome, Identity, Journal,
    ModuleErrors, Outcome, Pattern, Plan, PlannedLayer, SavedStatistics, Source, Task, Weighting,
    allocate, prune,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The request for a new model.
pub(super) struct Request<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) settings: &'a CalibrationSettings,
    pub(super) shared: &'a SharedSettings,
    pub(super) folder: ModelFolder,
    pub(super) calibration: Calibration,
    pub(super) report_prompts: Vec<String>,
    pub(super) task: Task<'a>,
    /// How much is removed, in words.
    pub(super) removed: String,
    pub(super) budget: Budget,
    /// Notes for the report.
    pub(super) notes: Vec<String>,
}

/// Makes the new model, or returns what would be done.
pub(super) fn run(request: Request<'_>) -> Result<Done> {
    let Calibration { prompts, sampling, .. } = &request.calibration;
    let needs =
        |folder: &ModelFolder| MemoryNeeds::of(folder, sampling, sampling.batch.min(prompts.len()));
    // With as few weights in memory as can be.
    needs(&request.folder.clone().within(0)).check()?;
    let needs = needs(&request.folder);
    work(request).map_err(|error| needs.explain(error))
}

fn work(request: Request<'_>) -> Result<Done> {
    let Request { job, settings: args, shared, folder, calibration, report_prompts, .. } = request;
    let Request { task, removed, budget, mut notes, .. } = request;
    if job.resume && args.save_statistics.is_some() {
        refuse!("`resume` cannot be used with `save-statistics`");
    }
    let task = &task;
    let (allocation, judged) = (budget.allocation, report_prompts.len());
    let (of_folder, of_calibration) = (&folder, &calibration);
    let needs = Needs {
        settings: args,
        score: &shared.score,
        folder: of_folder,
        calibration: of_calibration,
        task,
        allocation,
        judged,
    };
    let Fitted { mut plan, footprint, kept, reading } = needs.plan()?;
    notes.extend(read_again(&folder, kept));
    notes.extend(beyond_machine(&folder, &footprint));
    let one = plan.packages.len() == 1;
    if !one && (args.statistics.is_some() || args.save_statistics.is_some()) {
        refuse!(
            "statistics can be saved and used again only with one package, as later packages see a \
             pruned model; this plan has {}: with `packages 1` or more `memory` it has one",
            plan.packages.len()
        );
    }
    let copied = folder.copied_bytes()?;
    let saved_before = args.statistics.is_some();
    let what = (&plan, task, removed.as_str());
    let mut dry = DryRun::new(
        &folder,
        what,
        &calibration,
        judged,
        (allocation, saved_before),
        (footprint, reading, copied),
    )?;
    notes.extend(too_few(&folder, &plan, &calibration)?);
    let wanted = args.packages.map(Positive::get);
    if let Some(packages) = wanted.filter(|packages| *packages > plan.packages.len()) {
        notes.push(format!("`packages` {packages}, and there are {} at most", plan.packages.len()));
    }
    if judged > 0 {
        folder.check_pictures()?;
    }
    notes.extend(
        folder
            .cuts(&[&calibration.prompts[..], &report_prompts].concat(), &calibration.sampling)?,
    );
    let mut inputs = job.inputs(shared, &folder);
    inputs.extend(args.statistics.clone());
    if job.dry_run {
        job.check_output(&borrowed(&inputs), copied)?;
        inputs.extend(job.out.map(Path::to_owned));
        for path in [&args.save_statistics, &args.carry_statistics].into_iter().flatten() {
            job.check_other_output(path, &borrowed(&inputs))?;
            inputs.push(path.clone());
        }
        if let Some(path) = &args.statistics {
            SavedStatistics::open(path, &Fingerprint::new(&folder, &calibration, &())?, &())?
                .check(&plan)?;
        }
        dry.notes = notes;
        return Done::plan(&folder, dry.text(), &dry, dry.time.seconds);
    }
    // From here on a signal ends the work in order, and the temporary folders go with it.
    let progress = Recorder::new(job.observer, &dry.time.stages, job.later);
    let mut output = job.output(&borrowed(&inputs))?;
    let fingerprint = Fingerprint::new(&folder, &calibration, &progress)?;
    let saved = args
        .statistics
        .as_ref()
        .map(|path| SavedStatistics::open(path, &fingerprint, &progress))
        .transpose()?;
    saved.as_ref().map_or(Ok(()), |saved| saved.check(&plan))?;
    let run = Identity::new(
        &fingerprint,
        calibration.sampling.batch,
        &plan,
        task,
        budget,
        saved.as_ref(),
        folder.placement().description(),
    )?;
    // What is only copied counts, too.
    let score = shared.score.digest(&folder, judged, &progress)?;
    let carried =
        args.carry_statistics.as_ref().map_or(String::new(), |path| shown(path).to_string());
    let request = [
        run.digest()?,
        folder.digest(&progress)?,
        digest_of_texts(&report_prompts),
        score,
        carried,
    ];
    if output.is_finished(&digest_of_texts(&request))? {
        return finished(&output, &progress);
    }
    output.check_progress(Journal::is_own)?;
    OutputFolder::check_space(output.target(), copied)?;
    let clip = shared.score.open(&folder)?;
    if clip.is_none() && !report_prompts.is_empty() {
        notes.push(no_score(&folder).into());
    }
    notes.extend(links_left_out(&folder));
    inputs.push(output.target().to_owned());
    let mut folder_for = |path: &Option<PathBuf>| {
        let output =
            path.as_ref().map(|path| job.other_output(path, &borrowed(&inputs))).transpose()?;
        // None is in another.
        inputs.extend(output.as_ref().map(|output| output.target().to_owned()));
        Ok::<_, Error>(output)
    };
    let (statistics_output, carried_output) =
        (folder_for(&args.save_statistics)?, folder_for(&args.carry_statistics)?);
    let journal = match job.resume {
        true => Journal::open(&output.progress(), &run, &progress)?,
        false => Journal::create(&output.progress(), &run)?,
    };

    progress.note(&dry.summary());
    notes.iter().for_each(|note| progress.note(note));
    if job.resume {
        let (finished, images) = journal.finished();
        progress.note(&format!("{finished} of {} packages are finished", plan.packages.len()));
        if images > 0 {
            progress.note(&format!(
                "of the next, {images} of {} images are summed up",
                calibration.prompts.len()
            ));
        }
    }
    let names = names(&[folder.path(), output.target()]);
    let texts = [&calibration.prompts[..], &report_prompts].concat();
    let (folder, sampling) = (folder.within(kept), &calibration.sampling);
    let mut pipeline = Pipeline::encoded(folder, &texts, sampling, &progress)?;
    // It may find that the model cannot be made smaller so.
    if let Task::Structured { method, .. } = task {
        method.prepare(&pipeline, &plan, &calibration, &progress)?;
    }
    // The report's noise is not the calibration's.
    let sampling = Sampling {
        seed: calibration.sampling.seed.wrapping_add(1),
        ..calibration.sampling.clone()
    };
    let sampling = skipping(&sampling, pipeline.folder(), false)?;
    let mut evaluation = Evaluation::new(&report_prompts, clip.as_ref(), &progress);
    evaluation.add(&pipeline, &names[0], &sampling)?;
    let mut product = Product::new(pipeline.folder().placement())?;
    product.measure()?;
    let step_weights = match &saved {
        Some(saved) => saved.step_weights().to_vec(),
        None => calibration.step_weights(&mut pipeline, &progress)?,
    };
    if calibration.weighting == Weighting::Measured {
        progress.note(&format!("weights of the steps, as measured: {}", spelled(&step_weights)));
    }
    let calibrating = Source::Calibration(&calibration, &step_weights, Some(&journal));
    let mut gathered = None;
    if budget.allocation != Allocation::Uniform {
        let settings = match journal.settings(&progress) {
            Some(settings) => settings,
            None => {
                let source = saved.as_ref().map(Source::Saved);
                let source = source.as_ref().unwrap_or(&calibrating);
                let (settings, statistics) =
                    allocate(&mut pipeline, &plan, task, source, &calibration, budget, &progress)?;
                journal.set_settings(&settings, plan.packages.len())?;
                gathered = statistics;
                settings
            }
        };
        plan.set(&settings);
    }
    let source = match (&saved, &gathered) {
        (Some(saved), _) => Source::Saved(saved),
        (None, Some(gathered)) => Source::Gathered(gathered),
        (None, None) => calibrating,
    };
    let dimensions = plan.groups().any(|planned| matches!(planned.group, Group::Dimensions(_)));
    let module_errors =
        dimensions.then(|| ModuleErrors::new(&pipeline, &calibration, &progress)).transpose()?;
    // A finished package has no statistics to carry.
    let journal = carried_output.is_none().then_some(&journal);
    let mut outcome =
        prune(&mut pipeline, &plan, task, &source, module_errors.as_ref(), journal, &progress)?;
    if statistics_output.is_none() && carried_output.is_none() {
        outcome.statistics.clear();
    }
    product.measure()?;
    evaluation.add(&pipeline, &names[1], &sampling)?;

    progress.begin("save", pipeline.parameters().iter().count(), "tensors");
    pipeline.folder().write(&output.path(), &outcome.edits, &progress)?;
    if let Some(output) = &statistics_output {
        let statistics = gathered.as_ref().unwrap_or(&outcome.statistics);
        SavedStatistics::write(&output.path(), statistics, &step_weights, &fingerprint)?;
    }
    if let Some(carried_output) = &carried_output {
        let carried = source.carried(&plan, &outcome)?;
        let new = ModelFolder::open(&output.path(), pipeline.folder().variant())?;
        let of_new = Fingerprint::new(&new, &calibration, &progress)?;
        SavedStatistics::write(&carried_output.path(), &carried, &step_weights, &of_new)?;
    }
    let (models, comparison, pictures) = evaluation.compare()?;
    notes.extend(damped(&outcome));
    notes.extend(mixed(&plan, task));
    if let ([before, after], Task::Weights { .. }) = (models.as_slice(), task)
        && after.zeros <= before.zeros
    {
        let note = format!(
            "nothing was removed: {} of {} weights were zero before",
            before.zeros, before.parameters
        );
        progress.warn(&note);
        notes.push(note);
    }
    let (mut stages, peak_bytes) = progress.stages();
    // Packages that were finished before were not calibrated now.
    if !job.resume
        && let Some(stage) = stages.iter_mut().find(|stage| stage.name == "calibrate")
    {
        stage.floor_seconds = Some(dry.calibration_floor(product.rate().median));
    }
    let report = Report {
        format_version: Report::FORMAT_VERSION,
        title: format!("{}, {removed} removed by {}", names[0], task.method()),
        command: job.command.into(),
        secateur_version: env!("CARGO_PKG_VERSION").into(),
        seed: shared.sampling.seed(),
        settings: settings(
            args,
            &calibration,
            &step_weights,
            &plan,
            (task.method(), &removed),
            budget,
            pipeline.folder().placement(),
        ),
        models,
        comparison,
        layers: layers(&outcome),
        groups: groups(&outcome),
        skipping: None,
        stages,
        peak_bytes,
        notes,
    };
    report.write(&pictures, &output.path())?;
    // Where the new model is, its statistics are.
    statistics_output.map(OutputFolder::finish).transpose()?;
    carried_output.map(OutputFolder::finish).transpose()?;
    output.finish()?;
    Ok(Done::Model(Box::new(report)))
}

/// Returns a note if not all of the denoiser's weights stay in memory.
fn read_again(folder: &ModelFolder, kept: u64) -> Option<String> {
    let WeightBytes { all, .. } = folder.weight_bytes();
    (kept < all).then(|| {
        format!(
            "{} of {} of the denoiser's weights stay in memory; the others are read from the file \
             each time they are used",
            bytes(kept),
            bytes(all)
        )
    })
}

/// Returns a warning if the run needs more memory than the machine has.
fn beyond_machine(folder: &ModelFolder, footprint: &Footprint) -> Option<String> {
    let machine = memory::of_machine().filter(|_| !folder.placement().is_on_gpu())?;
    (footprint.total() > machine).then(|| {
        format!(
            "this machine has {} of memory, less than the run takes: `memory` sets a limit that \
             it keeps to",
            bytes(machine)
        )
    })
}

/// Returns a warning if an input has fewer rows in the statistics than columns.
fn too_few(folder: &ModelFolder, plan: &Plan, calibration: &Calibration) -> Result<Option<String>> {
    let samples = calibration.prompts.len() * folder.samples_of_run(&calibration.sampling)?;
    let rows = |layer: &PlannedLayer| samples * layer.tokens.div_ceil(calibration.token_stride);
    let few: Vec<&PlannedLayer> =
        plan.layers().filter(|layer| rows(layer) < layer.columns).collect();
    let worst = few.iter().min_by(|a, b| (rows(a) * b.columns).cmp(&(rows(b) * a.columns)));
    Ok(worst.map(|worst| {
        format!(
            "too few calibration samples: the input of {} has {} rows in its statistics and is {} \
             wide, and {} more layers are like \
             that; more `samples`, or a smaller `token-stride`, make the result better",
            worst.name,
            rows(worst),
            worst.columns,
            few.len() - 1
        )
    }))
}

/// Returns the calibration, the prompts of the report, and notes. The calibration has `samples`
/// prompts of the model's own list if no number is given.
pub(super) fn prompts(
    settings: &CalibrationSettings,
    shared: &SharedSettings,
    folder: &ModelFolder,
    samples: usize,
) -> Result<(Calibration, Vec<String>, Vec<String>)> {
    let (prompts, report, notes) = prompt_lists(&shared.prompts, folder, samples)?;
    let calibration = Calibration {
        prompts,
        sampling: shared.sampling.sampling(folder, BATCH)?,
        weighting: settings.weighting(),
        token_stride: settings.token_stride(),
    };
    Ok((calibration, report, notes))
}

fn layers(outcome: &Outcome) -> Vec<LayerReport> {
    let layer = |layer: &secateur_prune::LayerOutcome| LayerReport {
        name: layer.name.to_string(),
        rows: layer.rows,
        columns: layer.columns,
        sparsity: layer.zeros as f64 / (layer.rows * layer.columns).max(1) as f64,
        error: layer.error,
        damping: layer.damping,
        package: layer.package,
    };
    outcome.layers.iter().map(layer).collect()
}

fn groups(outcome: &Outcome) -> Vec<GroupReport> {
    let group = |group: &GroupOutcome| GroupReport {
        name: group.name.to_string(),
        kind: group.kind.clone(),
        count: group.count,
        removed: group.removed.len(),
        error: group.error,
        module_error: group.module_error,
    };
    outcome.groups.iter().map(group).collect()
}

/// Returns a note on the patterns that the allocation chose, if it replaced one N:M pattern.
fn mixed(plan: &Plan, task: &Task<'_>) -> Option<String> {
    let Task::Weights { pattern: wanted @ Pattern::SemiStructured { .. }, .. } = task else {
        return None;
    };
    let mut layers = BTreeMap::<String, usize>::new();
    for pattern in plan.layers().filter_map(|layer| layer.pattern) {
        *layers.entry(pattern.to_string()).or_default() += 1;
    }
    let counts: Vec<_> =
        layers.iter().map(|(pattern, count)| format!("{count} layers {pattern}")).collect();
    (counts.len() > 1).then(|| {
        let counts = counts.join(", ");
        format!(
            "not all layers are {wanted}: {counts}; for hardware that wants {wanted}, \
            `allocation uniform`"
        )
    })
}

/// Returns notes on Hessians that needed more damping than usual.
fn damped(outcome: &Outcome) -> Vec<String> {
    let raised = outcome.layers.iter().filter(|layer| layer.damping > Factor::DAMPING);
    raised
        .map(|l| {
            format!(
                "{}: damping raised to {} to make its Hessian positive definite",
                l.name, l.damping
            )
        })
        .collect()
}

fn settings(
    args: &CalibrationSettings,
    calibration: &Calibration,
    step_weights: &[f64],
    plan: &Plan,
    (method, removed): (&str, &str),
    budget: Budget,
    placement: &Placement,
) -> Map<String, Value> {
    let sampling = &calibration.sampling;
    let settings = json!({
        "method": method,
        "removed": removed,
        "calibration prompts": calibration.prompts.len(),
        "calibration steps": sampling.steps,
        "sampler": sampling.sampler.to_string(),
        "token stride": calibration.token_stride,
        "guidance": sampling.guidance,
        "batch": sampling.batch,
        "timestep weighting": calibration.weighting.to_string(),
        "timestep weights": spelled(step_weights),
        "allocation": budget.allocation.to_string(),
        "packages": plan.packages.len(),
        "statistics": if args.statistics.is_some() { "saved before" } else { "of this run" },
        "seed of the report's noise": sampling.seed.wrapping_add(1),
        "threads": rayon::current_num_threads(),
    });
    match settings {
        Value::Object(map) => map.into_iter().chain(of_gpu(placement)).collect(),
        _ => Map::new(),
    }
}
