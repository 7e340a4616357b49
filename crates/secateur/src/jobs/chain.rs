//! A chain of methods with one report.

mod sharing;
mod step;

use super::compare::Evaluation;
use super::folder::{BATCH, Job, borrowed, names, no_score, of_gpu, skipping};
use super::plan::{Done, Plan, finished, report_in};
use super::prompts::{prompt_lists, report_list};
use super::{prune, skip, slim};
use crate::error::{Result, refuse};
use crate::estimate::Time;
use crate::recipe::{MethodSettings, Recipe};
use crate::recorder::{Recorder, Unseen};
use crate::settings::ModelSettings;
use secateur_eval::{PicturePair, Report, SkippingReport, Stage};
use secateur_models::Error::Interrupted;
use secateur_models::files::{
    digest_of_folder, digest_of_texts, link_files, read_sealed, remove, shown, write_sealed,
};
use secateur_models::{ModelFolder, Observer, OutputFolder, Pipeline, Sampling, Subject};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use step::Step;

/// Makes the new model, or returns what would be done.
pub(super) fn run(recipe: &Recipe, job: &Job<'_>) -> Result<Done> {
    let observer = job.observer;
    let folder = job.open(&recipe.shared)?;
    let out = job.out.unwrap_or(Path::new("OUT"));
    let mut steps = Step::of(recipe, (folder.path(), folder.variant()), out);
    sharing::share(&mut steps, &folder)?;
    let file = recipe.file.as_ref().map_or_else(String::new, |file| format!("{}: ", shown(file)));
    // What no method can do is known before the first begins.
    let plan = |(number, step): (usize, &Step)| {
        step.plan(&folder, job).map_err(|error| error.of(format!("{file}method {number}")))
    };
    let plans = (1..).zip(&steps).map(plan).collect::<Result<Vec<_>>>()?;
    let inputs = inputs(recipe, job, &folder, &steps);
    let learned = steps.iter().map(|step| step.prompts(&folder)).collect::<Result<Vec<_>>>()?;
    let shared = &recipe.shared;
    let (report_prompts, notes) = report_list(&shared.prompts, &folder, &learned.concat())?;
    if !report_prompts.is_empty() {
        folder.check_pictures()?;
    }
    // The first model is drawn as the last one.
    let sampled = skipping(&sampling(recipe, &steps, &folder)?, &folder, false)?;
    let macs =
        folder.computed_structure(&sampled).macs() as f64 * folder.samples_of_run(&sampled)? as f64;
    let of_report = [("evaluate", macs * report_prompts.len() as f64); 2];
    let of_report = Time::of(folder.placement(), &of_report)?;
    let copied = folder.copied_bytes()?;
    if job.dry_run {
        job.check_output(&borrowed(&inputs), copied * steps.len() as u64)?;
        let (mut text, mut json) = (Vec::new(), Vec::new());
        for (step, plan) in steps.iter().zip(&plans) {
            let command = step.command()?;
            text.push(format!("{command}\n{}", plan.text));
            json.push(json!({ "command": command, "plan": plan }));
        }
        let seconds = of_report.seconds + plans.iter().map(|plan| plan.seconds).sum::<f64>();
        return Done::plan(&folder, text.join("\n\n"), &json, seconds);
    }
    let progress = Recorder::new(observer, &[], 0.0);
    let mut output = job.output(&borrowed(&inputs))?;
    progress.begin("read the model", 0, "");
    let model = folder.digest(&progress)?;
    let score = shared.score.digest(&folder, report_prompts.len(), &progress)?;
    progress.stages();
    let mut of = vec![model, score];
    of.extend(folder.placement().description());
    for (step, prompts) in steps.iter_mut().zip(&learned) {
        of.extend(step.depends_on(prompts, observer)?);
        step.key = digest_of_texts(&of);
    }
    of.extend(report_prompts.iter().cloned());
    if output.is_finished(&digest_of_texts(&of))? {
        return finished(&output, observer);
    }
    output.check_progress(Step::is_own)?;
    let mut done = begin(&steps, job.resume, &output.progress(), observer)?;
    OutputFolder::check_space(output.target(), copied * (steps.len() - done) as u64)?;
    let mut reports =
        steps[..done].iter().map(|step| report_in(&step.out)).collect::<Result<Vec<_>>>()?;
    for (index, step) in steps.iter().enumerate().skip(done) {
        observer.note(&format!("method {} of {}: {}", index + 1, steps.len(), step.command()?));
        let later =
            of_report.seconds + plans[index + 1..].iter().map(|plan| plan.seconds).sum::<f64>();
        let report = step.run(later, observer);
        // A method that is stopped may write what it has, and goes on from there.
        let stopped = || observer.advance(0).is_err() && step.is_unfinished();
        let report =
            report.and_then(|report| if stopped() { Err(Interrupted.into()) } else { Ok(report) });
        if report.is_ok() {
            step.keep()?;
            done += 1;
            if let Some(before) = index.checked_sub(1) {
                remove(&steps[before].statistics())?;
            }
        }
        if done > 0 && (report.is_err() || observer.advance(0).is_err()) {
            observer.say(&format!(
                "{done} of {} methods are finished: `resume` goes on after them",
                steps.len()
            ));
        }
        reports.push(report?);
        observer.advance(0)?;
    }
    let (report, pictures) =
        evaluate(recipe, job, &folder, &steps, (&reports, &report_prompts, notes), out)?;
    let Some(last) = steps.last() else { refuse!("the recipe has no methods") };
    report.write(&pictures, &output.path())?;
    // Reports and records are of a folder.
    let of_model = |file: &Path| {
        !["report.html", "report.json", ".secateur.json"].iter().any(|own| file == Path::new(own))
    };
    link_files(&last.out, &output.path(), of_model, &Unseen(observer))?;
    output.finish()?;
    Ok(Done::Model(Box::new(report)))
}

/// Returns the files and folders that the job reads.
fn inputs(recipe: &Recipe, job: &Job<'_>, folder: &ModelFolder, steps: &[Step]) -> Vec<PathBuf> {
    let mut inputs = job.inputs(&recipe.shared, folder);
    for step in steps {
        let shared = step.settings.shared();
        inputs.extend([&shared.prompts.prompts, &shared.score.clip].into_iter().flatten().cloned());
        inputs.extend(step.statistics_given().cloned());
    }
    inputs
}

/// Returns the sampling of the report's models: that of the last method that learns for one
/// sampling, if any.
fn sampling(recipe: &Recipe, steps: &[Step], folder: &ModelFolder) -> Result<Sampling> {
    let sampled =
        steps.iter().rev().find_map(|step| step.sampling(folder).transpose()).transpose()?;
    sampled.map_or_else(|| recipe.shared.sampling.sampling(folder, BATCH), Ok)
}

/// The keys of a run's methods: [`Step::key`].
#[derive(Serialize, Deserialize)]
struct Run(Vec<String>);

/// Returns how many methods of the resumed run are finished. A method with damaged files or a
/// different key is run again, with all after it.
fn begin(
    methods: &[Step],
    resume: bool,
    progress: &Path,
    observer: &dyn Observer,
) -> Result<usize> {
    let kept = progress.join("run.json");
    let mut finished = 0;
    if resume {
        let before = match read_sealed::<Run>(&kept) {
            Ok(Run(keys)) => keys,
            Err(error) => {
                if kept.exists() {
                    observer.say(&format!("{error}: unfinished methods begin again"));
                }
                Vec::new()
            }
        };
        if let Some(first) = methods.first()
            && let Some(key) = first.made().map(|made| made.of).or(before.first().cloned())
            && key != first.key
        {
            refuse!(
                "{}: the unfinished run is of another model, or its first method of other settings \
                 or prompts: `force` begins anew",
                shown(&kept)
            );
        }
        finished = methods.iter().take_while(|method| method.is_whole(observer)).count();
        // A method that is to be run needs what the one before it shares.
        while let Some(method) = methods.get(finished).filter(|_| finished > 0)
            && method.uses_statistics
            && !methods[finished - 1].has_statistics(observer)
        {
            observer.say(&format!(
                "the statistics for method {} are not there, or damaged: method {finished} is run \
                 again",
                finished + 1
            ));
            finished -= 1;
        }
        // Who interrupts has not seen all of them.
        observer.advance(0)?;
        for (index, method) in methods.iter().enumerate().skip(finished) {
            if before.get(index) != Some(&method.key) {
                method.remove()?;
            }
        }
    }
    write_sealed(&kept, &Run(methods.iter().map(|method| method.key.clone()).collect()))?;
    Ok(finished)
}

/// The record of a finished method.
#[derive(PartialEq, Serialize, Deserialize)]
struct Made {
    /// The method's key: [`Step::key`].
    of: String,
    /// Digest of its folder.
    digest: String,
    /// Digest of the statistics for the next method, if it leaves any.
    statistics: Option<String>,
}

impl Step {
    /// Runs the method, or continues it.
    fn run(&self, later: f64, observer: &dyn Observer) -> Result<Report> {
        let resume = self.is_unfinished();
        // What nobody vouches for is made again, of what is vouched for in the progress.
        remove(&self.out)?;
        remove(&self.statistics())?;
        let command = self.command()?;
        let job = Job {
            model: &self.model,
            out: Some(&self.out),
            file: None,
            force: false,
            resume,
            dry_run: false,
            part: true,
            later,
            command: &command,
            observer,
        };
        let done = run_method(&self.settings_with_statistics(), &job);
        let report = done.map_err(|error| error.of(&command)).and_then(|done| match done {
            Done::Model(report) => Ok(*report),
            Done::Plan(_) => refuse!("{command} made no model"),
        });
        if report.is_err()
            && let Err(error) = remove(&self.statistics())
        {
            observer.say(&error.to_string());
        }
        report
    }

    /// Plans the method on the first model, as its own input model does not exist yet.
    fn plan(&self, first: &ModelFolder, of: &Job<'_>) -> Result<Plan> {
        let model = ModelSettings { model: Some(first.path().to_owned()), ..self.model.clone() };
        let command = self.command()?;
        let job = Job {
            model: &model,
            out: None,
            dry_run: true,
            part: true,
            command: &command,
            // What is to be said of model and device was said when they were opened.
            observer: &Unseen(of.observer),
            ..*of
        };
        match run_method(&self.settings, &job).map_err(|error| error.of(&command))? {
            Done::Plan(plan) => Ok(plan),
            Done::Model(_) => refuse!("{command} made a model"),
        }
    }

    /// Returns everything that the method depends on besides the methods before it: its settings,
    /// and digests of the prompts and of the statistics that it was given.
    fn depends_on(&self, prompts: &[String], observer: &dyn Observer) -> Result<[String; 3]> {
        let statistics = self.statistics_given();
        let statistics =
            statistics.map(|path| digest_of_folder(path, &Unseen(observer))).transpose()?;
        let settings = serde_json::to_string(&(
            &self.settings,
            self.uses_statistics,
            self.carries_statistics,
        ))?;
        Ok([settings, digest_of_texts(prompts), statistics.unwrap_or_default()])
    }

    fn is_unfinished(&self) -> bool {
        OutputFolder::progress_of(&self.out).is_dir()
    }

    /// Records that the method is finished, with the digests of its outputs.
    fn keep(&self) -> Result<()> {
        let statistics = self.statistics();
        // A signal that comes now finds it finished.
        let statistics =
            statistics.is_dir().then(|| digest_of_folder(&statistics, &())).transpose()?;
        let digest = digest_of_folder(&self.out, &())?;
        Ok(write_sealed(&self.made_path(), &Made { of: self.key.clone(), digest, statistics })?)
    }

    fn made(&self) -> Option<Made> {
        read_sealed(&self.made_path()).ok()
    }

    /// Returns whether the method is finished with its current key, and its new model is undamaged.
    fn is_whole(&self, observer: &dyn Observer) -> bool {
        if !self.made_path().exists() {
            return false;
        }
        let made = read_sealed::<Made>(&self.made_path());
        let problem = match &made {
            Ok(made) if made.of != self.key => "of other settings",
            Ok(made)
                if digest_of_folder(&self.out, &Unseen(observer))
                    .is_ok_and(|now| now == made.digest) =>
            {
                return true;
            }
            _ => "damaged",
        };
        if observer.advance(0).is_ok() {
            observer.say(&format!("{}: {problem}: it is made again", shown(&self.out)));
        }
        false
    }

    /// Returns whether the statistics for the next method exist and are undamaged.
    fn has_statistics(&self, observer: &dyn Observer) -> bool {
        let found = digest_of_folder(&self.statistics(), &Unseen(observer)).ok();
        found.is_some() && found == self.made().and_then(|made| made.statistics)
    }

    /// Removes the outputs of the method, and its unfinished work.
    fn remove(&self) -> Result<()> {
        for folder in [&self.out, &self.statistics()] {
            remove(folder)?;
            if let Some(work) = OutputFolder::progress_of(folder).parent() {
                remove(work)?;
            }
        }
        Ok(())
    }

    /// Returns the prompts that the method learns from, or may learn from: all of the model's own
    /// list if no number is given.
    fn prompts(&self, folder: &ModelFolder) -> Result<Vec<String>> {
        if folder.subject() == Subject::Nothing {
            return Ok(Vec::new());
        }
        Ok(prompt_lists(&self.settings.shared().prompts, folder, usize::MAX)?.0)
    }

    /// Returns the sampling that the new model is made for, or `None` if it is for any.
    fn sampling(&self, folder: &ModelFolder) -> Result<Option<Sampling>> {
        match &self.settings {
            MethodSettings::Skip(settings) => skip::sampling(settings, folder).map(Some),
            _ => Ok(None),
        }
    }
}

/// Runs one method on one model.
pub(super) fn run_method(method: &MethodSettings, job: &Job<'_>) -> Result<Done> {
    match method {
        MethodSettings::Prune(settings) => prune::run(settings, job),
        MethodSettings::Slim(settings) => slim::run(settings, job),
        MethodSettings::Skip(settings) => skip::run(settings, job),
    }
}

/// Makes the report of the whole chain, with pictures of the first and the last model.
fn evaluate(
    recipe: &Recipe,
    job: &Job<'_>,
    folder: &ModelFolder,
    methods: &[Step],
    (reports, prompts, mut notes): (&[Report], &[String], Vec<String>),
    out: &Path,
) -> Result<(Report, Vec<PicturePair>)> {
    let progress = Recorder::new(job.observer, &[], 0.0);
    let Some(last) = methods.last() else { refuse!("the recipe has no methods") };
    let sampling = sampling(recipe, methods, folder)?;
    // The report's noise is not that of the methods.
    let sampling = Sampling {
        seed: recipe.shared.sampling.seed().wrapping_add(1),
        batch: recipe.shared.sampling.sampling(folder, BATCH)?.batch,
        ..sampling
    };
    let clip = recipe.shared.score.open(folder)?;
    if clip.is_none() && !prompts.is_empty() {
        notes.push(no_score(folder).into());
    }
    let names = names(&[folder.path(), out]);
    let mut evaluation = Evaluation::new(prompts, clip.as_ref(), &progress);
    let last = ModelFolder::open(&last.out, folder.variant())?.at(folder.placement().clone());
    for (folder, name) in [folder.clone(), last].into_iter().zip(&names) {
        let sampling = skipping(&sampling, &folder, false)?;
        let pipeline = Pipeline::encoded(folder, prompts, &sampling, &progress)?;
        evaluation.add(&pipeline, name, &sampling)?;
    }
    let (models, comparison, pictures) = evaluation.compare()?;
    let (own_stages, own_peak) = progress.stages();
    let (mut stages, mut settings, mut skipping) =
        (Vec::<Stage>::new(), Map::new(), None::<SkippingReport>);
    for (number, (method, report)) in (1..).zip(methods.iter().zip(reports)) {
        let of_method = |text: &str| format!("{number}, {}: {text}", method.settings.name());
        stages.extend(
            report
                .stages
                .iter()
                .map(|stage| Stage { name: of_method(&stage.name), ..stage.clone() }),
        );
        notes.extend(report.notes.iter().map(|note| of_method(note)));
        settings.insert(of_method("command"), Value::String(method.command()?));
        settings
            .extend(report.settings.iter().map(|(name, value)| (of_method(name), value.clone())));
        skipping = report.skipping.clone().or(skipping);
    }
    settings.insert("seed of the report's noise".into(), json!(sampling.seed));
    settings.extend(of_gpu(folder.placement()));
    stages.extend(own_stages);
    let report = Report {
        format_version: Report::FORMAT_VERSION,
        title: format!(
            "{}, {}",
            names[0],
            methods.iter().map(|method| method.settings.name()).collect::<Vec<_>>().join(", then ")
        ),
        command: job.command.into(),
        secateur_version: env!("CARGO_PKG_VERSION").into(),
        seed: recipe.shared.sampling.seed(),
        settings,
        models,
        comparison,
        layers: reports.iter().flat_map(|report| report.layers.clone()).collect(),
        groups: reports.iter().flat_map(|report| report.groups.clone()).collect(),
        skipping,
        stages,
        peak_bytes: reports.iter().map(|report| report.peak_bytes).fold(own_peak, u64::max),
        notes,
    };
    Ok((report, pictures))
}
