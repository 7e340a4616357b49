//! Skipping: which blocks to compute at each denoising step (DiP-GO).

use super::compare::model_summary;
use super::folder::{Job, borrowed, links_left_out, names, no_score, of_gpu};
use super::memory_needs::MemoryNeeds;
use super::plan::{Done, finished};
use super::prompts::prompt_lists;
use crate::error::{Result, refuse};
use crate::estimate::Time;
use crate::footprint::{Footprint, Model};
use crate::format::{bytes, count};
use crate::recorder::Recorder;
use crate::settings::{Count, LossName, ScoreSettings, SkipSettings};
use secateur_eval::{Comparison, Report, SkippingReport, WayReport};
use secateur_models::files::digest_of_texts;
use secateur_models::{
    ModelFolder, Observer, OutputFolder, Pipeline, ReuseSchedule, Sampling, Structure, UnitKind,
};
use secateur_nn::Placement;
use secateur_skip::{
    Learning, Loss, Pruner, Scores, Search, Selected, Tried, compare, kept, learn, ways,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// The default share of the multiply-accumulates that is kept.
const KEEP: f64 = 0.4;
/// The default number of images at a time.
const BATCH: usize = 4;
/// The default limits of iterations and of exchanges.
const ITERATIONS: usize = 100;
const EXCHANGES: usize = 200;
/// The default number of prompts to learn from.
const SAMPLES: usize = 32;

/// The most pictures at a time on which rules are compared.
const SEARCHED: usize = 8;
/// Number of schedules that are tried besides the exchanges: rules and learned ones, in each order.
const PLAIN: usize = 12;
/// The time of all ways of sampling in the report, as a multiple of that of one that is learned.
const COMPARED: f64 = 20.0;
/// The most ways of sampling in the report.
const WAYS: usize = 8;
/// Number of copies of the units' outputs while gates mix them with forecasts: the forecast, its
/// difference to the output, that times the gate, the sum, and the gradient of the sum.
const MIXED: u64 = 5;

/// The plan of a run.
#[derive(Serialize)]
struct DryRun {
    model: PathBuf,
    kind: UnitKind,
    units: Vec<String>,
    calls: usize,
    /// Multiply-accumulates of a run for one sample.
    macs: u64,
    keep: f64,
    /// The least share that can be kept.
    least: f64,
    /// Bytes of the pruner network and its optimiser.
    network_bytes: u64,
    iterations: usize,
    time: Time,
    memory: Footprint,
}

/// Makes the new model, or returns what would be done. A run that is stopped writes its result so
/// far, and keeps the files to continue beside it.
pub(super) fn run(args: &SkipSettings, job: &Job<'_>) -> Result<Done> {
    let folder = job.open(&args.shared)?;
    let sampling = sampling(args, &folder)?;
    let lists = prompt_lists(&args.shared.prompts, &folder, SAMPLES)?;
    let needs = MemoryNeeds::of(&folder, &sampling, sampling.batch.min(lists.0.len()));
    needs.check()?;
    work(args, job, folder, sampling, lists).map_err(|error| needs.explain(error))
}

/// Does it, with prompts to learn from and of the report, and notes.
fn work(
    args: &SkipSettings,
    job: &Job<'_>,
    folder: ModelFolder,
    sampling: Sampling,
    lists: (Vec<String>, Vec<String>, Vec<String>),
) -> Result<Done> {
    let shared = &args.shared;
    let (iterations, exchanges) = (
        args.iterations.map_or(ITERATIONS, Count::get),
        args.exchanges.map_or(EXCHANGES, Count::get),
    );
    let structure = folder.structure(&sampling);
    let kind = args.units.unwrap_or(UnitKind::Block);
    let whole = folder.whole_reuse(&sampling, kind)?;
    let keep = keep(args, &whole, &structure)?;
    let counts = (lists.0.len(), lists.1.len());
    let of_run = (&sampling, &whole, &structure);
    let footprint = footprint(&shared.score, iterations, &folder, of_run, counts)?;
    let tried = (iterations, exchanges);
    let dry = DryRun::new(tried, &folder, of_run, keep, counts, footprint)?;
    folder.check_pictures()?;
    let copied = folder.copied_bytes()?;
    let inputs = job.inputs(shared, &folder);
    let (prompts, report_prompts, mut notes) = lists;
    notes.extend(folder.cuts(&[&prompts[..], &report_prompts].concat(), &sampling)?);
    if job.dry_run {
        job.check_output(&borrowed(&inputs), copied)?;
        let text = format!("{}\n\n{}", dry.text(), dry.memory.table());
        return Done::plan(&folder, text, &dry, dry.time.seconds);
    }
    let progress = Recorder::new(job.observer, &dry.time.stages, job.later);
    let mut output = job.output(&borrowed(&inputs))?;
    let learning = Learning {
        prompts,
        sampling: sampling.clone(),
        loss: match args.loss.unwrap_or_default() {
            LossName::Ssim => Loss::Ssim,
            LossName::L1 => Loss::L1,
            LossName::L2 => Loss::L2,
        },
        iterations,
        keep,
    };
    let request = request(&learning, kind, &folder, &progress)?;
    let score = shared.score.digest(&folder, report_prompts.len(), &progress)?;
    let whole_request =
        [request.clone(), exchanges.to_string(), digest_of_texts(&report_prompts), score];
    if output.is_finished(&digest_of_texts(&whole_request))? {
        return finished(&output, &progress);
    }
    output.check_progress(secateur_skip::Progress::is_own)?;
    OutputFolder::check_space(output.target(), copied)?;
    let clip = shared.score.open(&folder)?;
    if clip.is_none() && !report_prompts.is_empty() {
        notes.push(no_score(&folder).into());
    }
    notes.extend(links_left_out(&folder));
    progress.note(&dry.text());
    notes.iter().for_each(|note| progress.note(note));

    let names = names(&[folder.path(), output.target()]);
    let texts = [&learning.prompts[..], &report_prompts].concat();
    let pipeline = Pipeline::encoded(folder, &texts, &sampling, &progress)?;
    let state = secateur_skip::Progress { folder: output.progress(), request };
    let search = Search::new(&pipeline, &whole, &learning, Some(&state), &progress)?;
    let learned = match iterations {
        0 => None,
        _ => Some(learn(&pipeline, &search.to_learn(), &learning, Some(&state), &progress)?),
    };
    let Tried { schedules, stopped } = match &learned {
        Some(learned) if learned.stopped => {
            Tried { schedules: search.rules().to_vec(), stopped: true }
        }
        learned => search.select(learned.as_ref().map(|learned| &learned.scores), exchanges)?,
    };
    let told = schedules
        .iter()
        .map(|tried| format!("{tried} {:.2} dB", tried.psnr))
        .collect::<Vec<_>>()
        .join("; ");
    notes.push(format!(
        "the first of these is kept, by the PSNR of some of the pictures that were learned from: \
         {told}"
    ));
    if stopped {
        let place = match &learned {
            Some(learned) if learned.stopped => {
                format!("after {} of {} iterations", learned.history.len(), iterations)
            }
            _ => "before the end of the exchanges".into(),
        };
        notes.push(format!(
            "stopped {place}: the model is of what was closest so far, and `resume` goes on"
        ));
    }
    let Some(Selected { schedule, .. }) = schedules.first().cloned() else {
        refuse!("there is nothing to keep")
    };
    let history = learned.map_or(Vec::new(), |learned| learned.history);

    let skipping = Sampling { reuse: Some(Arc::new(schedule.clone())), ..sampling.clone() };
    let models = vec![
        model_summary(&pipeline, &names[0], &sampling)?,
        model_summary(&pipeline, &names[1], &skipping)?,
    ];
    let mut compared = Vec::new();
    if !report_prompts.is_empty() && !stopped {
        // The report's noise is not that of the learning.
        let sampling = Sampling { seed: sampling.seed.wrapping_add(1), ..sampling.clone() };
        let compared_ways =
            ways(&pipeline, &schedules, &whole, &learning, &progress).and_then(|ways| {
                compare(
                    &pipeline,
                    (&names[0], &sampling),
                    &ways,
                    &report_prompts,
                    clip.as_ref(),
                    &progress,
                )
            });
        compared = match compared_ways {
            Err(secateur_skip::Error::Model(secateur_models::Error::Interrupted)) => {
                notes.push(
                    "stopped before the pictures of the report were drawn: `secateur \
                        compare` draws some"
                        .into(),
                );
                Vec::new()
            }
            compared => compared?,
        };
    }
    let ways: Vec<WayReport> = compared.iter().map(|compared| compared.report.clone()).collect();
    notes.extend(closer(&ways));
    // The first is what is kept.
    let (comparison, pictures) = compared.into_iter().next().map_or((None, Vec::new()), |kept| {
        (Some(Comparison { candidate: names[1].clone(), ..kept.comparison }), kept.pictures)
    });
    progress.begin("save", 0, "");
    pipeline.folder().write_reuse(&output.path(), &schedule, &())?;
    let (stages, peak_bytes) = progress.stages();
    let report = Report {
        format_version: Report::FORMAT_VERSION,
        title: format!(
            "{}, {:.0} % of the work kept",
            names[0],
            100.0 * kept(&schedule, &structure)?
        ),
        command: job.command.into(),
        secateur_version: env!("CARGO_PKG_VERSION").into(),
        seed: sampling.seed,
        settings: settings(
            exchanges,
            &learning,
            history.len(),
            kind,
            pipeline.folder().placement(),
        ),
        models,
        comparison,
        layers: Vec::new(),
        groups: Vec::new(),
        skipping: Some(SkippingReport {
            kind: kind.to_string(),
            units: schedule.units.clone(),
            computed: schedule.computed.clone(),
            order: schedule.order,
            kept: kept(&schedule, &structure)?,
            history: history.iter().map(|point| (point.loss, point.kept)).collect(),
            ways,
        }),
        stages,
        peak_bytes,
        notes,
    };
    report.write(&pictures, &output.path())?;
    if stopped { output.finish_for_now() } else { output.finish() }?;
    Ok(Done::Model(Box::new(report)))
}

/// Returns the sampling to learn for.
pub(super) fn sampling(args: &SkipSettings, folder: &ModelFolder) -> Result<Sampling> {
    args.shared.sampling.sampling(folder, BATCH)
}

/// Returns the share to keep.
fn keep(args: &SkipSettings, whole: &ReuseSchedule, structure: &Structure) -> Result<f64> {
    let keep = match (args.keep, args.speedup) {
        (_, Some(speedup)) if speedup > 1.0 => 1.0 / speedup,
        (_, Some(speedup)) => refuse!("`speedup {speedup}` is not more than 1"),
        (keep, None) => keep.unwrap_or(KEEP),
    };
    if !(keep > 0.0 && keep < 1.0) {
        refuse!(
            "`keep {keep}` is not in (0, 1): give the share of the multiply-accumulates to keep"
        );
    }
    let least = least(whole, structure)?;
    if keep < least {
        let rounded = (1000.0 * least).ceil() / 1000.0;
        refuse!(
            "{:.1} % of the multiply-accumulates cannot be kept: with everything used again but at \
             the first of {} calls, {:.1} % \
             are left: `keep {rounded}` is the least, and more `steps` leave less",
            100.0 * keep,
            whole.computed.len(),
            100.0 * least
        );
    }
    Ok(keep)
}

/// Returns the share that is left if only the first call computes anything.
fn least(whole: &ReuseSchedule, structure: &Structure) -> Result<f64> {
    let nothing = Scores(vec![vec![0.0; whole.units.len()]; whole.computed.len()]);
    Ok(kept(&nothing.at(1.0, whole, structure)?, structure)?)
}

impl DryRun {
    fn new(
        (iterations, exchanges): (usize, usize),
        folder: &ModelFolder,
        (sampling, whole, structure): (&Sampling, &ReuseSchedule, &Structure),
        keep: f64,
        (learned, judged): (usize, usize),
        memory: Footprint,
    ) -> Result<Self> {
        let macs = whole.macs(structure)?;
        let batch = sampling.batch.min(learned);
        let runs = |runs: usize, share: f64| runs as f64 * share;
        // A run forward, and on the way back each call once more with a gradient, which is far from
        // the rate of products.
        let learning = runs(iterations * batch, 1.0 + 6.0) + runs(learned, 1.0);
        // A try goes on from where the closest schedule stands.
        let judged_by = SEARCHED.min(learned);
        let exchanges = runs(judged_by * exchanges, keep / 2.0);
        let plain = runs(judged_by * PLAIN, keep / 2.0);
        let report = runs(judged, 1.0 + COMPARED * keep);
        let stages = [
            ("plain", plain),
            ("learn", learning),
            ("select", plain),
            ("exchange", exchanges),
            ("evaluate", report),
        ];
        let stages = stages.map(|(name, runs)| (name, runs * macs as f64));
        let time = Time::of(folder.placement(), &stages)?;
        Ok(Self {
            model: folder.path().to_owned(),
            kind: whole.kind,
            units: whole.units.clone(),
            calls: whole.computed.len(),
            macs,
            time,
            keep,
            least: least(whole, structure)?,
            network_bytes: match iterations {
                0 => 0,
                _ => Pruner::bytes(whole.computed.len() - 1, whole.units.len()),
            },
            iterations,
            memory,
        })
    }

    fn text(&self) -> String {
        let learning = match self.iterations {
            0 => "nothing is learned".to_owned(),
            iterations => format!(
                "learning: {iterations} iterations, with {} for the pruner network and its \
                 optimiser",
                bytes(self.network_bytes)
            ),
        };
        let (calls, units, macs) = (self.calls, self.units.len(), count(self.macs));
        format!(
            "{calls} calls of {units} units ({}), {macs} MACs a run for one sample\n\
             kept: {:.1} % of the MACs, where {:.1} % is the least\n\
             {learning}\n\
             {}\n\
             {}",
            self.kind,
            100.0 * self.keep,
            100.0 * self.least,
            self.memory.text(),
            self.time.text(),
        )
    }
}

/// Estimates the memory of the run, stage by stage, for that many prompts to learn from and
/// pictures of the report.
fn footprint(
    score: &ScoreSettings,
    iterations: usize,
    folder: &ModelFolder,
    (sampling, whole, structure): (&Sampling, &ReuseSchedule, &Structure),
    (learned, judged): (usize, usize),
) -> Result<Footprint> {
    let scorer = score.path(folder);
    let model = Model::new(folder, sampling, (learned, judged), scorer.as_deref())?;
    let (passes, calls) = (folder.passes(sampling.guidance), whole.computed.len());
    let batch = sampling.batch.min(learned);
    let handed_on = structure.handed_on_bytes(whole.kind)? * passes as u64;
    let of_batch = |bytes: u64| bytes * batch as u64;
    let mut footprint = Footprint::new(folder.placement());
    footprint.add("encode", model.encoding());
    let judging = batch.min(SEARCHED) as u64;
    let plain = [
        ("activations", model.activations(batch)),
        ("what units made", judging * calls as u64 * handed_on),
    ];
    footprint.add("plain", model.loaded().into_iter().chain(plain));
    if iterations > 0 {
        let backward = structure.backward_bytes() + folder.decoder_backward_bytes(sampling);
        let network = Pruner::bytes(calls.saturating_sub(1), whole.units.len());
        // The way back goes through the autoencoder with all pictures, and then through one call of
        // the denoiser.
        let of_decoder = folder.decoder_graph_bytes(sampling);
        let of_call = passes as u64 * structure.graph_bytes() + MIXED * handed_on;
        let graph = ("kept for gradients", of_batch(of_decoder.max(of_call)));
        let made = ("what units made", of_batch(calls as u64 * handed_on));
        let own = [("packed for gradients", backward), graph, made, ("pruner network", network)];
        footprint.add("learn", model.loaded().into_iter().chain(own));
    }
    if judged > 0 {
        footprint.add("evaluate", model.evaluation(1 + WAYS));
    }
    Ok(footprint)
}

/// Returns everything that the result depends on, as text.
fn request(
    learning: &Learning,
    kind: UnitKind,
    folder: &ModelFolder,
    observer: &dyn Observer,
) -> Result<String> {
    let Learning { prompts, sampling, loss, iterations, keep } = learning;
    let calibration = secateur_prune::Calibration::new(prompts.clone(), sampling.clone());
    let fingerprint = secateur_prune::Fingerprint::new(folder, &calibration, observer)?;
    // Pictures are judged: the autoencoder counts, too.
    let fingerprint =
        secateur_prune::Fingerprint { model: folder.digest(observer)?, ..fingerprint };
    let fingerprint = serde_json::to_string(&fingerprint)?;
    let batch = sampling.batch;
    let device = folder.placement().description().map(|gpu| format!(", {gpu}"));
    Ok(format!(
        "{kind} units, {loss}, {iterations} iterations of {batch} pictures, {keep} kept, \
         {fingerprint}{}",
        device.unwrap_or_default()
    ))
}

/// Returns a note if another way than the first gives closer pictures.
fn closer(ways: &[WayReport]) -> Option<String> {
    let (kept, others) = ways.split_first()?;
    let best = others
        .iter()
        .max_by(|a, b| a.psnr.total_cmp(&b.psnr))
        .filter(|best| best.psnr > kept.psnr)?;
    Some(format!(
        "closer, within the share that was asked for: {}, {:.2} dB with {:.1} % of the MACs, \
         against {:.2} dB with {:.1} %",
        best.name,
        best.psnr,
        100.0 * best.kept,
        kept.psnr,
        100.0 * kept.kept
    ))
}

fn settings(
    exchanges: usize,
    learning: &Learning,
    iterations: usize,
    kind: UnitKind,
    placement: &Placement,
) -> Map<String, Value> {
    let sampling = &learning.sampling;
    let settings = json!({
        "method": "skip",
        "units": kind.to_string(),
        "loss": learning.loss.to_string(),
        "iterations": format!("{iterations} of {}", learning.iterations),
        "exchanges tried": format!("no more than {exchanges}"),
        "prompts to learn from": learning.prompts.len(),
        "sampler": sampling.sampler.to_string(),
        "seed of the report's noise": sampling.seed.wrapping_add(1),
        "threads": rayon::current_num_threads(),
    });
    match settings {
        Value::Object(map) => map.into_iter().chain(of_gpu(placement)).collect(),
        _ => Map::new(),
    }
}
