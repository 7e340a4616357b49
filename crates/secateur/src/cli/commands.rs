//! The commands: each maps its settings to a function of the library, and prints the result.

use crate::cli::args::{Cli, Command, Common, CompressArgs, InspectArgs, JobArgs};
use crate::cli::print::{print, print_json, warn};
use crate::cli::progress::{self, Progress};
use crate::cli::told;
use anyhow::{Result, bail};
use secateur::format::quoted;
use secateur::settings::{BenchSettings, DeviceSettings, Positive, options};
use secateur::{Error, MethodSettings, Recipe};
use serde::Serialize;
use std::process::Command as Process;

/// The most threads per core. More would only wait for each other.
const THREADS_A_CORE: usize = 4;
/// Images at a time, for estimates of memory.
const BATCH: usize = 8;

pub(crate) fn run(cli: Cli) -> Result<()> {
    let asked = cli.common.threads.map_or_else(num_cpus::get_physical, usize::from);
    let threads = asked.min(THREADS_A_CORE * num_cpus::get());
    if threads < asked {
        warn(&format!("{threads} threads are as many as this machine has use for"));
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    // Within the pool: work handed to it from outside costs a wake-up and a wait at every kernel.
    rayon::scope(|_| command(cli.command, &cli.common))
}

fn command(command: Command, common: &Common) -> Result<()> {
    let progress = &Progress::new(common.quiet);
    let force = common.force;
    match command {
        Command::Prune(args) => method(MethodSettings::Prune(args.settings), args.job, common),
        Command::Slim(args) => method(MethodSettings::Slim(args.settings), args.job, common),
        Command::Skip(args) => method(MethodSettings::Skip(args.settings), args.job, common),
        Command::Compress(args) => recipe(*args, common),
        Command::Generate(mut settings) => {
            settings.force = force;
            let generated = secateur::generate(&settings, progress)?;
            match common.json {
                true => print_json(&Told::of(&generated)),
                false => told::drawn(&generated, &settings.out),
            }
        }
        Command::Inspect(args) => inspect(&args, common),
        Command::Compare(mut settings) => {
            (settings.force, settings.command) = (force, command_line());
            let report = secateur::compare(&settings, progress)?;
            match common.json {
                true => print_json(&report),
                false => told::compared(&report, settings.out.as_deref()),
            }
        }
        Command::Bench(settings) => {
            let bench = secateur::bench(&settings, &peak_alone, progress)?;
            match common.json {
                true => print_json(&Told::of(&bench)),
                false => print(&bench.text()),
            }
        }
        Command::Convert(mut settings) => {
            settings.force = force;
            let converted = secateur::convert(&settings, progress)?;
            match common.json {
                true => print_json(&Told::of(&converted)),
                false => told::converted(&converted, &settings.file, &settings.like),
            }
        }
        Command::Export(mut args) => {
            args.settings.force = force;
            let exported = secateur::export(&args.settings, progress)?;
            match common.json {
                true => print_json(&Told::of(&exported)),
                false => told::exported(&exported),
            }
        }
    }
}

/// Runs one method.
fn method(method: MethodSettings, job: JobArgs, common: &Common) -> Result<()> {
    make(Recipe::of(job.model.clone(), method), job, common)
}

/// Runs the methods of a recipe's file.
fn recipe(args: CompressArgs, common: &Common) -> Result<()> {
    let recipe = Recipe::read(&args.recipe)?;
    let shared = args.shared.or(&recipe.shared);
    make(Recipe { shared, ..recipe }, args.job, common)
}

/// Makes a new model, or prints what would be done.
fn make(recipe: Recipe, job: JobArgs, common: &Common) -> Result<()> {
    let progress = Progress::new(common.quiet);
    let recipe = Recipe {
        model: job.model,
        out: job.out,
        force: common.force,
        resume: job.resume,
        command: Some(command_line()),
        ..recipe
    };
    if job.dry_run {
        let plan = secateur::plan(&recipe, &progress)?;
        match common.json {
            true => print_json(&plan)?,
            false => print(&plan.text)?,
        }
        return plan.lacks.map_or(Ok(()), |lacks| bail!("{lacks}: this cannot be run"));
    }
    let report = secateur::run(&recipe, &progress)?;
    match common.json {
        true => print_json(&report),
        false => told::new_model(&report, recipe.out.as_deref()),
    }
}

fn inspect(args: &InspectArgs, common: &Common) -> Result<()> {
    let progress = Progress::new(common.quiet);
    if args.memory {
        let batch = args.batch.map_or(BATCH, Positive::get);
        let (model, device) = (&args.settings.model, &args.device);
        let memory = secateur::call_memory(model, device, batch, &progress)?;
        return if common.json { print_json(&memory) } else { print(&memory.text()) };
    }
    if args.device != DeviceSettings::default() {
        bail!(Error::Request("`device` and `dtype` need `memory` here".to_owned()));
    }
    let inspection = secateur::inspect(&args.settings, &progress)?;
    if common.json { print_json(&inspection) } else { print(&inspection.text(args.tree)) }
}

/// Times a model in a process of its own, and returns that process's peak memory in bytes, if the
/// system reports it.
fn peak_alone(settings: &BenchSettings) -> secateur::Result<Option<u64>> {
    let failed = |problem: &dyn std::fmt::Display| Error::Process(format!("bench: {problem}"));
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let mut process = Process::new(program);
    process.args(["bench", "--json", "--quiet"]);
    process.arg(format!("--threads={}", rayon::current_num_threads()));
    process.args(options(&BenchSettings { models: Vec::new(), ..settings.clone() })?);
    process.arg("--").args(&settings.models);
    let output = process.output().map_err(|error| failed(&error))?;
    // Ctrl-C reaches both processes.
    progress::check()?;
    if !output.status.success() {
        return Err(failed(&String::from_utf8_lossy(&output.stderr).trim()));
    }
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(told["models"][0]["peak_bytes"].as_u64())
}

/// A result for JSON output, with the command that it is of.
#[derive(Serialize)]
struct Told<'a, T> {
    command: String,
    #[serde(flatten)]
    result: &'a T,
}

impl<'a, T> Told<'a, T> {
    fn of(result: &'a T) -> Self {
        Self { command: command_line(), result }
    }
}

/// Returns the command line, as it was given.
fn command_line() -> String {
    let given = std::env::args_os().skip(1).map(|word| quoted(&word.to_string_lossy()));
    std::iter::once("secateur".to_owned()).chain(given).collect::<Vec<_>>().join(" ")
}
