//! `secateur compress`: several methods after each other.

mod recipe;
mod sharing;

use super::compare::model_summary;
use super::prompts::prompt_lists;
use super::told::tell;
use super::{command_line, names, no_score, prune, skip, skipping, slim};
use crate::args::{Command, Common, CompressArgs};
use crate::format::{print, print_json};
use crate::progress::{Progress, say};
use anyhow::{Context, Result, bail};
use recipe::{Method, Recipe};
use secateur_eval::{Comparison, PicturePair, Report, Samples, SkippingReport, Stage};
use secateur_models::{ModelFolder, Observer, OutputFolder, Pipeline, Sampling, Subject};
use secateur_prune::Fingerprint;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

pub(crate) fn run(args: &CompressArgs, common: &Common) -> Result<()> {
    let recipe = Recipe::read(&args.recipe)?;
    let args = &recipe.merged()?;
    let folder = args.job.model.open()?;
    let out = args.job.out.clone().unwrap_or_else(|| "OUT".into());
    let mut methods = recipe.methods(folder.path(), &out)?;
    sharing::share(&mut methods, &folder)?;
    if args.job.dry_run {
        let commands: Vec<String> = methods.iter().map(Method::to_string).collect();
        return if common.json { print_json(&commands) } else { commands.iter().try_for_each(|line| print(line)) };
    }
    let report_prompts = report_prompts(args, &folder)?;
    let inputs = [Some(folder.path()), Some(&*args.recipe), args.job.prompts.prompts.as_deref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().collect();
    let output = OutputFolder::create(&out, common.force, &inputs)?;
    let request = format!("model {}\n{}", Fingerprint::of_model(&folder)?, recipe.request);
    let finished = begin(&methods, &request, args.job.resume, common.force)?;
    let mut reports = Vec::new();
    for (index, method) in methods.iter().enumerate() {
        if index < finished {
            reports.push(method.report()?);
            continue;
        }
        if !common.quiet {
            say(&format!("method {} of {}: {method}", index + 1, methods.len()));
        }
        // What a method of its own writes is replaced, or gone on with.
        let resume = args.job.resume && method.is_unfinished();
        let common = Common { force: !resume, json: false, ..common.clone() };
        let report = method.run(resume, &common);
        match report {
            Err(_) if index > 0 => {
                say(&format!("{index} of {} methods are finished: --resume goes on after them", methods.len()));
            }
            // There is nothing to go on with.
            Err(_) if !method.is_unfinished() => remove(&methods)?,
            _ => {}
        }
        reports.push(report?);
        if method.is_unfinished() {
            let stopped = anyhow::Error::from(secateur_models::Error::Interrupted);
            return Err(
                stopped.context(format!("{} was stopped before it was done: --resume goes on with it", method.name))
            );
        }
        if let Some(before) = index.checked_sub(1) {
            remove_folder(&methods[before].statistics())?;
        }
    }
    let (report, pictures) = evaluate(args, common, &folder, &methods, (&reports, &report_prompts), &out)?;
    let last = methods.last().context("the recipe has no methods")?;
    for entry in std::fs::read_dir(&last.out)? {
        let entry = entry?;
        std::fs::rename(entry.path(), output.path().join(entry.file_name()))?;
    }
    report.write(&pictures, output.path())?;
    output.finish()?;
    remove(&methods)?;
    tell(Some(&report), Some(&out), common)
}

/// Prompts of the report, which no method learns from.
fn report_prompts(args: &CompressArgs, folder: &ModelFolder) -> Result<Vec<String>> {
    let own = folder.subject() == Subject::Nothing || folder.prompts(|prompts| &prompts.held_out)?.is_some();
    if args.job.prompts.report_samples > 0 && args.job.prompts.report_prompts.is_none() && !own {
        bail!(
            "{} comes with no held-out prompts: give --report-prompts FILE, or --report-samples 0 for no comparison",
            folder.path().display()
        );
    }
    Ok(prompt_lists(&args.job.prompts, folder, 1)?.1)
}

/// How many methods are finished of a run whose result depends on `request`; what another run left is thrown away with `force`.
fn begin(methods: &[Method], request: &str, resume: bool, force: bool) -> Result<usize> {
    let begun = methods.iter().any(|method| method.out.is_dir() || method.is_unfinished());
    let first = methods.first().context("the recipe has no methods")?;
    let kept = first.recipe_path();
    match (begun, resume) {
        (false, true) => bail!("nothing to resume: there is no unfinished run for this --out"),
        (true, false) if !force => {
            bail!("a run for this --out was not finished: --resume goes on with it, --force begins anew")
        }
        (true, false) => remove(methods)?,
        (true, true) if std::fs::read_to_string(&kept).ok().as_deref() != Some(request) => {
            bail!("{}: it is of another model, recipe or command line", kept.display())
        }
        _ => {}
    }
    std::fs::write(&kept, request).with_context(|| format!("{}", kept.display()))?;
    Ok(methods.iter().take_while(|method| method.out.is_dir() && !method.is_unfinished()).count())
}

/// Removes what the methods made.
fn remove(methods: &[Method]) -> Result<()> {
    for method in methods {
        for folder in [&method.out, &method.unfinished(), &method.statistics()] {
            remove_folder(folder)?;
        }
        let recipe = method.recipe_path();
        if recipe.is_file() {
            std::fs::remove_file(recipe)?;
        }
    }
    Ok(())
}

fn remove_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() { std::fs::remove_dir_all(folder) } else { Ok(()) }
}

impl Method {
    fn run(&self, resume: bool, common: &Common) -> Result<Report> {
        // Those of a run that was stopped before its model was whole.
        remove_folder(&self.statistics())?;
        let report = match self.command(resume)? {
            Command::Prune(args) => prune::compress(&args, common),
            Command::Slim(args) => slim::compress(&args, common),
            Command::Skip(args) => skip::compress(&args, common),
            _ => bail!("{self} is no method"),
        };
        report.and_then(|report| report.context("it made no model")).with_context(|| format!("{self}"))
    }

    /// Where the method stands as a run of its own that was stopped.
    fn unfinished(&self) -> PathBuf {
        let name = self.out.file_name().unwrap_or_default().to_string_lossy();
        self.out.with_file_name(format!(".{name}.unfinished"))
    }

    fn is_unfinished(&self) -> bool {
        self.unfinished().is_dir()
    }

    fn report(&self) -> Result<Report> {
        let path = self.out.join("report.json");
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
    (reports, prompts): (&[Report], &[String]),
    out: &Path,
) -> Result<(Report, Vec<PicturePair>)> {
    let progress = Progress::new(common.quiet);
    let last = methods.last().context("the recipe has no methods")?;
    let sampled = methods.iter().rev().find_map(|method| method.sampling(folder).transpose()).transpose()?;
    let sampling = sampled.map_or_else(|| args.job.sampling.sampling(folder), Ok)?;
    // The report's noise is not that of the methods.
    let sampling =
        Sampling { seed: args.job.sampling.seed.wrapping_add(1), batch: args.job.sampling.batch, ..sampling };
    let clip = args.job.score.open(folder)?;
    let mut notes: Vec<String> = Vec::new();
    if clip.is_none() && !prompts.is_empty() {
        notes.push(no_score(folder).into());
    }
    let names = names(&[folder.path(), out]);
    let (mut models, mut samples) = (Vec::new(), Vec::new());
    for (folder, name) in [folder.clone(), ModelFolder::open(&last.out, None)?].into_iter().zip(&names) {
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
