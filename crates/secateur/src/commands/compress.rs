//! `secateur compress`: several methods after each other.

mod recipe;
mod sharing;

use super::compare::model_summary;
use super::prompts::{prompt_lists, report_list};
use super::told::tell;
use super::{command_line, names, no_score, prune, skip, skipping, slim};
use crate::args::{Command, Common, CompressArgs};
use crate::format::{print, print_json};
use crate::progress::{self, Progress, say};
use anyhow::{Context, Result, bail};
use recipe::{Method, Recipe};
use secateur_eval::{Comparison, PicturePair, Report, Samples, SkippingReport, Stage};
use secateur_models::Error::Interrupted;
use secateur_models::{ModelFolder, Observer, OutputFolder, Pipeline, Sampling, Subject};
use secateur_prune::Fingerprint;
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
    let output = OutputFolder::create(&out, common.force, &[])?;
    check_overlaps(args, &folder, &methods, output.target())?;
    let run = Run {
        model: Fingerprint::of_model(&folder)?,
        request: recipe.request.clone(),
        folders: methods.iter().map(Method::folder_name).collect(),
        prompts: learned,
    };
    let finished = run.begin(&methods, job.resume, common.force)?;
    let mut reports = Vec::new();
    for (index, method) in methods.iter().enumerate() {
        if index < finished {
            reports.push(method.report()?);
            continue;
        }
        if !common.quiet {
            say(&format!("method {} of {}: {method}", index + 1, methods.len()));
        }
        let resume = job.resume && method.is_unfinished();
        let report = method.run(resume, &Common { force: false, json: false, ..common.clone() });
        // A method may write what it has when it is stopped, or be stopped when it has just ended.
        let report = report.and_then(|report| if method.is_finished() { Ok(report) } else { Err(Interrupted.into()) });
        if report.is_err() {
            remove_folder(&method.out)?;
        }
        if report.is_err() || progress::check().is_err() {
            match methods.iter().take_while(|method| method.is_finished()).count() {
                // There is nothing to go on with.
                0 if !method.is_unfinished() => remove(&methods)?,
                0 => {}
                finished => {
                    say(&format!("{finished} of {} methods are finished: --resume goes on after them", methods.len()))
                }
            }
        }
        reports.push(report?);
        progress::check()?;
        if let Some(before) = index.checked_sub(1) {
            remove_folder(&methods[before].statistics())?;
        }
    }
    let (report, pictures) = evaluate(args, common, &folder, &methods, (&reports, &report_prompts, notes), &out)?;
    let last = methods.last().context("the recipe has no methods")?;
    report.write(&pictures, output.path())?;
    // From here on the last method is done again if this does not come to its end.
    std::fs::remove_file(last.report_path())?;
    for entry in std::fs::read_dir(&last.out)? {
        let entry = entry?;
        let target = output.path().join(entry.file_name());
        if !target.exists() {
            std::fs::rename(entry.path(), target)?;
        }
    }
    output.finish()?;
    remove(&methods)?;
    tell(Some(&report), Some(&out), common)
}

/// That nothing which is read lies where something is written.
fn check_overlaps(args: &CompressArgs, folder: &ModelFolder, methods: &[Method], target: &Path) -> Result<()> {
    let mut read = vec![folder.path().to_owned(), args.recipe.clone()];
    for method in methods {
        let job = method.job()?;
        read.extend([&job.prompts.prompts, &job.score.clip].into_iter().flatten().cloned());
    }
    read.extend([&args.job.prompts.report_prompts, &args.job.score.path(folder)].into_iter().flatten().cloned());
    for read in &read {
        let path = read.canonicalize().unwrap_or_else(|_| read.clone());
        let mut written =
            methods.iter().map(|method| target.with_file_name(method.out.file_name().unwrap_or_default()));
        if written.any(|written| path.starts_with(written)) || path.starts_with(target) || target.starts_with(&path) {
            bail!("{}: the output folder and {} overlap", target.display(), read.display());
        }
    }
    Ok(())
}

/// How the models of the report are sampled: as the last method that learns for one way of it.
fn sampling(args: &CompressArgs, methods: &[Method], folder: &ModelFolder) -> Result<Sampling> {
    let sampled = methods.iter().rev().find_map(|method| method.sampling(folder).transpose()).transpose()?;
    sampled.map_or_else(|| args.job.sampling.sampling(folder), Ok)
}

/// What a run depends on, written beside its first method.
#[derive(PartialEq, Serialize, Deserialize)]
struct Run {
    /// SHA-256.
    model: String,
    request: String,
    /// Of each method, its folder's name.
    folders: Vec<String>,
    /// And the prompts that it learns from.
    prompts: Vec<Vec<String>>,
}

impl Run {
    /// How many methods are finished; what another run left is thrown away with `force`.
    fn begin(&self, methods: &[Method], resume: bool, force: bool) -> Result<usize> {
        let first = methods.first().context("the recipe has no methods")?;
        let kept = first.run_path();
        let finished = methods.iter().take_while(|method| method.is_finished()).count();
        match (kept.is_file(), resume) {
            (false, true) => bail!("nothing to resume: there is no unfinished run for this --out"),
            (true, false) if !force => {
                bail!("a run for this --out was not finished: --resume goes on with it, --force begins anew")
            }
            (true, true) => {
                let same = Self::read(&kept)?.is_some_and(|before| {
                    (&before.model, &before.request) == (&self.model, &self.request)
                        && before.prompts.iter().zip(&self.prompts).take(finished).all(|(before, now)| before == now)
                });
                if !same {
                    bail!("{}: it is of another model, recipe or command line, or of other prompts", kept.display());
                }
            }
            (true, false) => {
                // Which may have been of other methods.
                for name in Self::read(&kept)?.into_iter().flat_map(|before| before.folders) {
                    remove_method(&first.out.with_file_name(name))?;
                }
                remove(methods)?;
            }
            (false, false) => remove(methods)?,
        }
        let text = serde_json::to_string(self)?;
        std::fs::write(&kept, text).with_context(|| format!("{}", kept.display()))?;
        Ok(if resume { finished } else { 0 })
    }

    /// Nothing where it is damaged.
    fn read(path: &Path) -> Result<Option<Self>> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        Ok(serde_json::from_str(&text).ok())
    }
}

/// Removes what the methods made, and what the run depends on.
fn remove(methods: &[Method]) -> Result<()> {
    methods.iter().try_for_each(|method| remove_method(&method.out))?;
    match methods.first().map(Method::run_path).filter(|path| path.is_file()) {
        Some(path) => Ok(std::fs::remove_file(path)?),
        None => Ok(()),
    }
}

/// Removes what the method with the output `out` made.
fn remove_method(out: &Path) -> Result<()> {
    for folder in [out, &unfinished(out), &recipe::statistics(out)] {
        remove_folder(folder)?;
    }
    Ok(())
}

/// Where a method stands as a run of its own that was stopped.
fn unfinished(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}.unfinished"))
}

fn remove_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() { std::fs::remove_dir_all(folder) } else { Ok(()) }
}

impl Method {
    fn run(&self, resume: bool, common: &Common) -> Result<Report> {
        // Those of a run that was stopped before its model was whole, or done.
        remove_folder(&self.statistics())?;
        remove_folder(&self.out)?;
        let report = match self.command(resume)? {
            Command::Prune(args) => prune::compress(&args, common),
            Command::Slim(args) => slim::compress(&args, common),
            Command::Skip(args) => skip::compress(&args, common),
            _ => bail!("{self} is no method"),
        };
        report.and_then(|report| report.context("it made no model")).with_context(|| format!("{self}"))
    }

    fn folder_name(&self) -> String {
        self.out.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn is_unfinished(&self) -> bool {
        unfinished(&self.out).is_dir()
    }

    /// Its model is written, and its report last.
    fn is_finished(&self) -> bool {
        self.report_path().is_file() && !self.is_unfinished()
    }

    fn report_path(&self) -> PathBuf {
        self.out.join("report.json")
    }

    /// The prompts that it learns from, or may learn from: all of the model's own where no number is given.
    fn prompts(&self, folder: &ModelFolder) -> Result<Vec<String>> {
        if folder.subject() == Subject::Nothing {
            return Ok(Vec::new());
        }
        Ok(prompt_lists(&self.job()?.prompts, folder, usize::MAX)?.0)
    }

    fn report(&self) -> Result<Report> {
        let path = self.report_path();
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
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
