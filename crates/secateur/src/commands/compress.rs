//! `secateur compress`: several methods after each other.

mod recipe;
mod sharing;

use super::compare::model_summary;
use super::prompts::{prompt_lists, report_list};
use super::request::{borrowed, command_line, names, no_score, skipping};
use super::told::{Done, Plan, finished, report_in, tell};
use super::{prune, skip, slim};
use crate::args::{Command, Common, CompressArgs};
use crate::estimate::Time;
use crate::progress::{self, Progress, say};
use anyhow::{Context, Result, bail};
use recipe::{Method, Recipe};
use secateur_eval::{Comparison, PicturePair, Report, Samples, SkippingReport, Stage};
use secateur_models::Error::Interrupted;
use secateur_models::files::{
    digest_of_folder, digest_of_texts, link_files, read_sealed, remove, shown, write_sealed,
};
use secateur_models::{ModelFolder, Observer, OutputFolder, Pipeline, Sampling, Subject};
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
    // What no method can do is known before the first begins.
    let plan = |(number, method): (usize, &Method)| {
        method
            .plan(&folder, common)
            .with_context(|| format!("{}: method {number}", shown(&args.recipe)))
    };
    let plans = (1..).zip(&methods).map(plan).collect::<Result<Vec<_>>>()?;
    let inputs = inputs(args, &folder, &methods)?;
    let learned =
        methods.iter().map(|method| method.prompts(&folder)).collect::<Result<Vec<_>>>()?;
    let (report_prompts, notes) = report_list(&job.prompts, &folder, &learned.concat())?;
    if !report_prompts.is_empty() {
        folder.check_pictures()?;
    }
    // The first model is drawn as the last one.
    let sampled = skipping(&sampling(args, &methods, &folder)?, &folder, false)?;
    let macs =
        folder.computed_structure(&sampled).macs() as f64 * folder.samples_of_run(&sampled)? as f64;
    let of_report = Time::of(&[("evaluate", macs * report_prompts.len() as f64); 2]);
    let copied = folder.copied_bytes()?;
    if job.dry_run {
        job.check_output(common, &borrowed(&inputs), copied * methods.len() as u64)?;
        let text =
            methods.iter().zip(&plans).map(|(method, plan)| format!("{method}\n{}", plan.text));
        let json: Vec<_> = methods
            .iter()
            .zip(&plans)
            .map(|(method, plan)| json!({ "command": method.to_string(), "plan": plan }))
            .collect();
        let text = text.collect::<Vec<_>>().join("\n\n");
        let seconds = of_report.seconds + plans.iter().map(|plan| plan.seconds).sum::<f64>();
        return tell(&Done::plan(&folder, text, &json, seconds)?, None, common);
    }
    progress::heed_signals();
    let mut output = job.output(common, &borrowed(&inputs))?;
    let progress = Progress::new(common.quiet);
    progress.begin("read the model", 0, "");
    let model = folder.digest(&progress)?;
    let score = job.score.digest(&folder, report_prompts.len(), &progress)?;
    progress.finish();
    let mut of = vec![model, score];
    for (method, prompts) in methods.iter_mut().zip(&learned) {
        of.extend(method.depends_on(prompts)?);
        method.key = digest_of_texts(&of);
    }
    of.extend(report_prompts.iter().cloned());
    if output.is_finished(&digest_of_texts(&of))? {
        return tell(&finished(&output)?, Some(&out), common);
    }
    output.check_progress(Method::is_own)?;
    let mut done = begin(&methods, job.resume, &output.progress())?;
    OutputFolder::check_space(output.target(), copied * (methods.len() - done) as u64)?;
    let mut reports =
        methods[..done].iter().map(|method| report_in(&method.out)).collect::<Result<Vec<_>>>()?;
    for (index, method) in methods.iter().enumerate().skip(done) {
        if !common.quiet {
            say(&format!("method {} of {}: {method}", index + 1, methods.len()));
        }
        let later =
            of_report.seconds + plans[index + 1..].iter().map(|plan| plan.seconds).sum::<f64>();
        let report =
            method.run(&Common { force: false, json: false, part: true, later, ..common.clone() });
        // A method that is stopped may write what it has, and goes on from there.
        let stopped = || progress::check().is_err() && method.is_unfinished();
        let report =
            report.and_then(|report| if stopped() { Err(Interrupted.into()) } else { Ok(report) });
        if report.is_ok() {
            method.keep()?;
            done += 1;
            if let Some(before) = index.checked_sub(1) {
                remove(&methods[before].statistics())?;
            }
        }
        if done > 0 && (report.is_err() || progress::check().is_err()) {
            say(&format!(
                "{done} of {} methods are finished: --resume goes on after them",
                methods.len()
            ));
        }
        reports.push(report?);
        progress::check()?;
    }
    let (report, pictures) =
        evaluate(args, common, &folder, &methods, (&reports, &report_prompts, notes), &out)?;
    let last = methods.last().context("the recipe has no methods")?;
    report.write(&pictures, &output.path())?;
    // Reports and records are of a folder.
    let of_model = |file: &Path| {
        !["report.html", "report.json", ".secateur.json"].iter().any(|own| file == Path::new(own))
    };
    link_files(&last.out, &output.path(), of_model, &Progress::new(true))?;
    output.finish()?;
    tell(&Done::Model(Box::new(report)), Some(&out), common)
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
    let sampled =
        methods.iter().rev().find_map(|method| method.sampling(folder).transpose()).transpose()?;
    sampled.map_or_else(|| args.job.sampling.sampling(folder), Ok)
}

/// What each method of a run depends on: [`Method::key`].
#[derive(Serialize, Deserialize)]
struct Run(Vec<String>);

/// How many methods are finished, of the run that is resumed. What is damaged, or of a method that
/// is another by now, is made again, with all after it.
fn begin(methods: &[Method], resume: bool, progress: &Path) -> Result<usize> {
    let kept = progress.join("run.json");
    let mut finished = 0;
    if resume {
        let before = match read_sealed::<Run>(&kept) {
            Ok(Run(keys)) => keys,
            Err(error) => {
                if kept.exists() {
                    say(&format!("{error}: unfinished methods begin again"));
                }
                Vec::new()
            }
        };
        if let Some(first) = methods.first()
            && let Some(key) = first.made().map(|made| made.of).or(before.first().cloned())
            && key != first.key
        {
            bail!(
                "{}: the unfinished run is of another model, or its first method of other settings \
                 or prompts: --force begins \
                 anew",
                shown(&kept)
            );
        }
        finished = methods.iter().take_while(|method| method.is_whole()).count();
        // A method that is to be run needs what the one before it shares.
        while let Some(method) = methods.get(finished).filter(|_| finished > 0)
            && method.statistics_read()?.is_some_and(|path| method.is_beside(&path))
            && !methods[finished - 1].has_statistics()
        {
            say(&format!(
                "the statistics for method {} are not there, or damaged: method {finished} is run \
                 again",
                finished + 1
            ));
            finished -= 1;
        }
        // Who interrupts has not seen all of them.
        progress::check()?;
        for (index, method) in methods.iter().enumerate().skip(finished) {
            if before.get(index) != Some(&method.key) {
                method.remove()?;
            }
        }
    }
    write_sealed(&kept, &Run(methods.iter().map(|method| method.key.clone()).collect()))?;
    Ok(finished)
}

/// What a finished method made.
#[derive(PartialEq, Serialize, Deserialize)]
struct Made {
    /// [`Method::key`].
    of: String,
    /// SHA-256 of its folder.
    sha256: String,
    /// The same of the statistics for the next method, if it leaves any.
    statistics: Option<String>,
}

impl Method {
    /// Runs it, or goes on with it.
    fn run(&self, common: &Common) -> Result<Report> {
        let resume = self.is_unfinished();
        // What nobody vouches for is made again, of what is vouched for in the progress.
        remove(&self.out)?;
        remove(&self.statistics())?;
        let done = self.compress(self.command(resume.then_some("--resume"))?, common);
        let report = done.and_then(|done| match done {
            Done::Model(report) => Ok(*report),
            Done::Plan(_) => bail!("{self} made no model"),
        });
        if report.is_err()
            && let Err(error) = remove(&self.statistics())
        {
            say(&error.to_string());
        }
        report
    }

    fn compress(&self, command: Command, common: &Common) -> Result<Done> {
        let done = match command {
            Command::Prune(args) => prune::compress(&args, common),
            Command::Slim(args) => slim::compress(&args, common),
            Command::Skip(args) => skip::compress(&args, common),
            _ => bail!("{self} is no method"),
        };
        done.with_context(|| self.to_string())
    }

    /// What it would do to the first model: the one that it is for is not there yet.
    fn plan(&self, first: &ModelFolder, common: &Common) -> Result<Plan> {
        match self.compress(self.rehearsal(first.path())?, common)? {
            Done::Plan(plan) => Ok(plan),
            Done::Model(_) => bail!("{self} made a model"),
        }
    }

    /// What it depends on beside the methods before it: its options and the files that they name.
    fn depends_on(&self, prompts: &[String]) -> Result<[String; 3]> {
        let prompts = digest_of_texts(prompts);
        let statistics = self.statistics_read()?.filter(|path| !self.is_beside(path));
        let statistics =
            statistics.map(|path| digest_of_folder(&path, &Progress::new(true))).transpose()?;
        Ok([self.options(), prompts, statistics.unwrap_or_default()])
    }

    fn is_unfinished(&self) -> bool {
        OutputFolder::progress_of(&self.out).is_dir()
    }

    /// Says that it is finished, and what it made.
    fn keep(&self) -> Result<()> {
        let statistics = self.statistics();
        // A signal that comes now finds it finished.
        let statistics =
            statistics.is_dir().then(|| digest_of_folder(&statistics, &())).transpose()?;
        let sha256 = digest_of_folder(&self.out, &())?;
        Ok(write_sealed(&self.made_path(), &Made { of: self.key.clone(), sha256, statistics })?)
    }

    fn made(&self) -> Option<Made> {
        read_sealed(&self.made_path()).ok()
    }

    /// Whether it is finished, as it is now, and all that it made is as it was.
    fn is_whole(&self) -> bool {
        if !self.made_path().exists() {
            return false;
        }
        let made = read_sealed::<Made>(&self.made_path());
        let problem = match &made {
            Ok(made) if made.of != self.key => "of other settings",
            Ok(made)
                if digest_of_folder(&self.out, &Progress::new(true))
                    .is_ok_and(|now| now == made.sha256) =>
            {
                return true;
            }
            _ => "damaged",
        };
        if progress::check().is_ok() {
            say(&format!("{}: {problem}: it is made again", shown(&self.out)));
        }
        false
    }

    /// Whether the statistics for the next method are there, as they were.
    fn has_statistics(&self) -> bool {
        let found = digest_of_folder(&self.statistics(), &Progress::new(true)).ok();
        found.is_some() && found == self.made().and_then(|made| made.statistics)
    }

    /// Removes what it made, and what it began.
    fn remove(&self) -> Result<()> {
        for folder in [&self.out, &self.statistics()] {
            remove(folder)?;
            if let Some(work) = OutputFolder::progress_of(folder).parent() {
                remove(work)?;
            }
        }
        Ok(())
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
        match self.command(None)? {
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
    let sampling = Sampling {
        seed: args.job.sampling.seed.wrapping_add(1),
        batch: args.job.sampling.batch,
        ..sampling
    };
    let clip = args.job.score.open(folder)?;
    if clip.is_none() && !prompts.is_empty() {
        notes.push(no_score(folder).into());
    }
    let names = names(&[folder.path(), out]);
    let (mut models, mut samples) = (Vec::new(), Vec::new());
    for (folder, name) in
        [folder.clone(), ModelFolder::open(&last.out, folder.variant())?].into_iter().zip(&names)
    {
        progress.begin("load", 0, "");
        let pipeline = Pipeline::open(folder)?;
        let sampling = skipping(&sampling, pipeline.folder(), false)?;
        models.push(model_summary(&pipeline, name, &sampling)?);
        if !prompts.is_empty() {
            pipeline.encode(prompts, &sampling, &progress)?;
            progress.begin(
                &format!("evaluate {name}"),
                prompts.len() * sampling.steps,
                "image steps",
            );
            samples.push(Samples::generate(
                &pipeline,
                name,
                prompts,
                &sampling,
                clip.as_ref(),
                &progress,
            )?);
        }
    }
    for (model, samples) in models.iter_mut().zip(&samples) {
        model.step_seconds = samples.step_seconds();
    }
    let (comparison, pictures) = match samples.as_slice() {
        [reference, candidate] => {
            reference.compare(candidate).map(|(comparison, pairs)| (Some(comparison), pairs))?
        }
        _ => (None::<Comparison>, Vec::new()),
    };
    let (own_stages, own_peak) = progress.finish();
    let (mut stages, mut settings, mut skipping) =
        (Vec::<Stage>::new(), Map::new(), None::<SkippingReport>);
    for (number, (method, report)) in (1..).zip(methods.iter().zip(reports)) {
        let of_method = |text: &str| format!("{number}, {}: {text}", method.name);
        stages.extend(
            report
                .stages
                .iter()
                .map(|stage| Stage { name: of_method(&stage.name), ..stage.clone() }),
        );
        notes.extend(report.notes.iter().map(|note| of_method(note)));
        settings.insert(of_method("command"), Value::String(method.to_string()));
        settings
            .extend(report.settings.iter().map(|(name, value)| (of_method(name), value.clone())));
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
