//! `secateur compress`: several methods after each other.

mod recipe;
mod sharing;

use super::compare::model_summary;
use super::prompts::{prompt_lists, report_list};
use super::told::{finished, report_in, tell};
use super::{borrowed, command_line, names, no_score, prune, skip, skipping, slim};
use crate::args::{Command, Common, CompressArgs};
use crate::format::{print, print_json};
use crate::progress::{self, Progress, say};
use anyhow::{Context, Result, bail};
use recipe::{Method, Recipe};
use secateur_eval::{Comparison, PicturePair, Report, Samples, SkippingReport, Stage};
use secateur_models::Error::Interrupted;
use secateur_models::files::{digest, digest_of_folder, link_files, read_sealed, shown, write_sealed};
use secateur_models::{ModelFolder, Observer, OutputFolder, Pipeline, Sampling, Subject};
use secateur_prune::{Fingerprint, SavedStatistics};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

pub(crate) fn run(args: &CompressArgs, common: &Common) -> Result<()> {
    let recipe = Recipe::read(&args.recipe)?;
    let args = &recipe.merged()?;
    let job = &args.job;
    let folder = job.model.open()?;
    let out = job.out.clone().unwrap_or_else(|| "OUT".into());
    let mut methods = recipe.methods(folder.path(), &out)?;
    sharing::share(&mut methods, &folder)?;
    if job.dry_run {
        let commands: Vec<String> = methods.iter().map(Method::to_string).collect();
        return if common.json { print_json(&commands) } else { commands.iter().try_for_each(|line| print(line)) };
    }
    let learned = methods.iter().map(|method| method.prompts(&folder)).collect::<Result<Vec<_>>>()?;
    let (report_prompts, notes) = report_list(&job.prompts, &folder, &learned.concat())?;
    // The first model is drawn as the last one.
    skipping(&sampling(args, &methods, &folder)?, &folder, false)?;
    progress::heed_signals();
    let output = job.output(common, &borrowed(&inputs(args, &folder, &methods)?))?;
    if output.is_finished() {
        return tell(Some(&finished(&output)?), Some(&out), common);
    }
    output.check_progress(Method::is_own)?;
    let prompts = learned.iter().map(|prompts| digest(prompts.iter().map(|prompt| format!("{prompt}\n")))).collect();
    let run = Run { model: Fingerprint::of_model(&folder)?, request: recipe.request.clone(), prompts };
    let mut done = run.begin(&methods, job.resume, &output.progress())?;
    let mut reports = methods[..done].iter().map(|method| report_in(&method.out)).collect::<Result<Vec<_>>>()?;
    for (index, method) in methods.iter().enumerate().skip(done) {
        if !common.quiet {
            say(&format!("method {} of {}: {method}", index + 1, methods.len()));
        }
        let report = method.run(&Common { force: false, json: false, ..common.clone() });
        // A method that is stopped may write what it has, and goes on from there.
        let stopped = || progress::check().is_err() && method.is_unfinished();
        let report = report.and_then(|report| if stopped() { Err(Interrupted.into()) } else { Ok(report) });
        if report.is_ok() {
            method.keep()?;
            done += 1;
            if let Some(before) = index.checked_sub(1) {
                remove_folder(&methods[before].statistics())?;
            }
        }
        if done > 0 && (report.is_err() || progress::check().is_err()) {
            say(&format!("{done} of {} methods are finished: --resume goes on after them", methods.len()));
        }
        reports.push(report?);
        progress::check()?;
    }
    let (report, pictures) = evaluate(args, common, &folder, &methods, (&reports, &report_prompts, notes), &out)?;
    let last = methods.last().context("the recipe has no methods")?;
    report.write(&pictures, &output.path())?;
    link_files(&last.out, &output.path(), |file| !file.starts_with("report.html") && !file.starts_with("report.json"))?;
    output.finish()?;
    tell(Some(&report), Some(&out), common)
}

/// The files and folders that are read.
fn inputs(args: &CompressArgs, folder: &ModelFolder, methods: &[Method]) -> Result<Vec<PathBuf>> {
    let mut inputs = args.job.inputs(folder);
    inputs.push(args.recipe.clone());
    for method in methods {
        let job = method.job()?;
        inputs.extend([job.prompts.prompts, job.score.clip].into_iter().flatten());
        inputs.extend(method.statistics_read()?.filter(|path| !method.is_beside(path)));
    }
    Ok(inputs)
}

/// How the models of the report are sampled: as the last method that learns for one way of it.
fn sampling(args: &CompressArgs, methods: &[Method], folder: &ModelFolder) -> Result<Sampling> {
    let sampled = methods.iter().rev().find_map(|method| method.sampling(folder).transpose()).transpose()?;
    sampled.map_or_else(|| args.job.sampling.sampling(folder), Ok)
}

/// What a run depends on.
#[derive(PartialEq, Serialize, Deserialize)]
struct Run {
    /// SHA-256.
    model: String,
    request: String,
    /// Of each method, the SHA-256 of the prompts that it learns from.
    prompts: Vec<String>,
}

impl Run {
    /// How many methods are finished, of the run that is resumed; what is damaged is made again.
    fn begin(&self, methods: &[Method], resume: bool, progress: &Path) -> Result<usize> {
        let kept = progress.join("run.json");
        let mut finished = 0;
        if resume && kept.exists() {
            match read_sealed::<Self>(&kept) {
                Ok(before) => {
                    finished = methods.iter().take_while(|method| method.is_whole()).count();
                    let same = (&before.model, &before.request) == (&self.model, &self.request)
                        && before.prompts.iter().zip(&self.prompts).take(finished).all(|(before, now)| before == now);
                    if !same {
                        bail!(
                            "{}: the unfinished run is of another model, recipe or command line, or of other prompts: --force \
                             begins anew",
                            shown(&kept)
                        );
                    }
                }
                // What cannot be read now may be whole.
                Err(error @ secateur_models::Error::Io { .. }) => return Err(error.into()),
                Err(error) => {
                    say(&format!("{error}: all methods are run again"));
                    for entry in std::fs::read_dir(progress).map_err(secateur_models::Error::io(progress))? {
                        remove_folder(&entry?.path())?;
                    }
                }
            }
        }
        // A method that is to be run needs what the one before it shares.
        while let Some(shared) =
            methods.get(finished).filter(|_| finished > 0).map(Method::statistics_read).transpose()?
            && let Some(Err(error)) =
                shared.filter(|path| methods[finished].is_beside(path)).map(|path| SavedStatistics::check(&path))
        {
            say(&format!("{error}: method {finished} is run again"));
            finished -= 1;
        }
        write_sealed(&kept, self)?;
        Ok(finished)
    }
}

fn remove_folder(folder: &Path) -> secateur_models::Result<()> {
    let removed = if folder.is_dir() { std::fs::remove_dir_all(folder) } else { Ok(()) };
    removed.map_err(secateur_models::Error::io(folder))
}

/// What a finished method made.
#[derive(PartialEq, Serialize, Deserialize)]
struct Made {
    /// Of its folder.
    sha256: String,
}

impl Method {
    /// Runs it, or goes on with it.
    fn run(&self, common: &Common) -> Result<Report> {
        let resume = self.is_unfinished();
        if !resume {
            remove_folder(&self.out)?;
        }
        if !self.out.exists() {
            remove_folder(&self.statistics())?;
        }
        let report = match self.command(resume)? {
            Command::Prune(args) => prune::compress(&args, common),
            Command::Slim(args) => slim::compress(&args, common),
            Command::Skip(args) => skip::compress(&args, common),
            _ => bail!("{self} is no method"),
        };
        let report = report.and_then(|report| report.context("it made no model")).with_context(|| format!("{self}"));
        if report.is_err()
            && let Err(error) = remove_folder(&self.statistics())
        {
            say(&error.to_string());
        }
        report
    }

    /// Whether entries of the progress of a recipe are called so.
    fn is_own(name: &str) -> bool {
        name == "run.json" || name.trim_start_matches('.').starts_with(|c: char| c.is_ascii_digit())
    }

    fn is_unfinished(&self) -> bool {
        OutputFolder::progress_of(&self.out).is_dir()
    }

    /// Says that it is finished, and what it made.
    fn keep(&self) -> Result<()> {
        Ok(write_sealed(&self.made_path(), &Made { sha256: digest_of_folder(&self.out)? })?)
    }

    /// Whether it is finished, and all that it made is as it was.
    fn is_whole(&self) -> bool {
        if !self.made_path().exists() {
            return false;
        }
        let made = read_sealed::<Made>(&self.made_path());
        let whole = made.and_then(|made| Ok(made.sha256 == digest_of_folder(&self.out)?));
        if !matches!(whole, Ok(true)) {
            say(&format!("{}: damaged: it is made again", shown(&self.out)));
        }
        matches!(whole, Ok(true))
    }

    fn made_path(&self) -> PathBuf {
        self.beside("json")
    }

    /// The prompts that it learns from, or may learn from: all of the model's own where no number
    /// is given.
    fn prompts(&self, folder: &ModelFolder) -> Result<Vec<String>> {
        if folder.subject() == Subject::Nothing {
            return Ok(Vec::new());
        }
        Ok(prompt_lists(&self.job()?.prompts, folder, usize::MAX)?.0)
    }

    /// How what it made is sampled, where it is made for one way.
    fn sampling(&self, folder: &ModelFolder) -> Result<Option<Sampling>> {
        match self.command(false)? {
            Command::Skip(args) => args.job.sampling.sampling(folder).map(Some),
            _ => Ok(None),
        }
    }
}

/// The report of all, with pictures of the first model and the last.
fn evaluate(
    args: &CompressArgs,
    common: &Common,
    folder: &ModelFolder,
    methods: &[Method],
    (reports, prompts, mut notes): (&[Report], &[String], Vec<String>),
    out: &Path,
) -> Result<(Report, Vec<PicturePair>)> {
    let progress = Progress::new(common.quiet);
    let last = methods.last().context("the recipe has no methods")?;
    let sampling = sampling(args, methods, folder)?;
    // The report's noise is not that of the methods.
    let sampling =
        Sampling { seed: args.job.sampling.seed.wrapping_add(1), batch: args.job.sampling.batch, ..sampling };
    let clip = args.job.score.open(folder)?;
    if clip.is_none() && !prompts.is_empty() {
        notes.push(no_score(folder).into());
    }
    let names = names(&[folder.path(), out]);
    let (mut models, mut samples) = (Vec::new(), Vec::new());
    for (folder, name) in [folder.clone(), ModelFolder::open(&last.out, folder.variant())?].into_iter().zip(&names) {
        progress.begin("load", 0, "");
        let pipeline = Pipeline::open(folder)?;
        let sampling = skipping(&sampling, pipeline.folder(), false)?;
        models.push(model_summary(&pipeline, name, &sampling)?);
        if !prompts.is_empty() {
            progress.begin(&format!("evaluate {name}"), prompts.len() * sampling.steps, "image steps");
            samples.push(Samples::generate(&pipeline, name, prompts, &sampling, clip.as_ref(), &progress)?);
        }
    }
    let (comparison, pictures) = match samples.as_slice() {
        [reference, candidate] => reference.compare(candidate).map(|(comparison, pairs)| (Some(comparison), pairs))?,
        _ => (None::<Comparison>, Vec::new()),
    };
    let (own_stages, own_peak) = progress.finish();
    let (mut stages, mut settings, mut skipping) = (Vec::<Stage>::new(), Map::new(), None::<SkippingReport>);
    for (number, (method, report)) in (1..).zip(methods.iter().zip(reports)) {
        let of_method = |text: &str| format!("{number}, {}: {text}", method.name);
        stages.extend(report.stages.iter().map(|stage| Stage { name: of_method(&stage.name), ..stage.clone() }));
        notes.extend(report.notes.iter().map(|note| of_method(note)));
        settings.insert(of_method("command"), Value::String(method.to_string()));
        settings.extend(report.settings.iter().map(|(name, value)| (of_method(name), value.clone())));
        skipping = report.skipping.clone().or(skipping);
    }
    settings.insert("seed of the report's noise".into(), json!(sampling.seed));
    stages.extend(own_stages);
    let report = Report {
        format_version: Report::FORMAT_VERSION,
        title: format!(
            "{}, {}",
            names[0],
            methods.iter().map(|method| &*method.name).collect::<Vec<_>>().join(", then ")
        ),
        command: command_line(),
        secateur_version: env!("CARGO_PKG_VERSION").into(),
        seed: args.job.sampling.seed,
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
