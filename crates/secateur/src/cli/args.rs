//! The command line.

use clap::{Args, Parser, Subcommand};
use secateur::settings::{
    BenchSettings, CompareSettings, ConvertSettings, DeviceSettings, ExportSettings,
    GenerateSettings, InspectSettings, ModelSettings, Positive, PruneSettings, SharedSettings,
    SkipSettings, SlimSettings,
};
use std::path::PathBuf;

/// Make a diffusion model smaller and faster without training, and measure the effect.
///
/// Exit codes: 0 success; 1 an error, and the output was not written; 2 an invalid command line;
/// 130 interrupted.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, args_override_self = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "All commands")]
pub(crate) struct Common {
    /// Replace an existing output folder if secateur wrote it and nothing in it has changed since;
    /// also discard an unfinished run for the same output
    #[arg(long, global = true)]
    pub(crate) force: bool,
    /// Show no progress
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Number of threads to compute with [default: the number of physical cores]
    #[arg(long, global = true, value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Remove weights, or heads and neurons (OBS-Diff): calibrate, prune, save and report
    Prune(Box<MethodArgs<PruneSettings>>),
    /// Reduce the rank of attention and remove neurons (SlimDiff): calibrate, reduce, save and
    /// report
    Slim(Box<MethodArgs<SlimSettings>>),
    /// Learn which blocks to compute at each denoising step (DiP-GO), and write a model that skips
    /// the others
    ///
    /// Ctrl-C ends learning early: the model is written with the best schedule so far, and --resume
    /// continues.
    Skip(Box<MethodArgs<SkipSettings>>),
    /// Run several methods (prune, slim, skip) in sequence, as a recipe lists them, with one report
    ///
    /// A recipe is a TOML file with one `[[method]]` table per method, in order. Each has a `name`
    /// and the options of that command without the dashes. Options of this command may stand before
    /// the first table, such as `samples = 50`, and hold for all methods; an option on the command
    /// line replaces the recipe's. Each method works on the model that the previous one left, and
    /// learns from that model. Successive prune and slim methods with the same calibration settings
    /// share one calibration.
    Compress(Box<CompressArgs>),
    /// Generate pictures from prompts
    Generate(GenerateSettings),
    /// Show layers, shapes, parameters, zeros and multiply-accumulates
    Inspect(InspectArgs),
    /// Compare two models on pictures generated from the same noise
    Compare(CompareSettings),
    /// Measure the speed and memory of models side by side: latency, images per second,
    /// multiply-accumulates
    ///
    /// In each round every model generates one batch. The models alternate at every step, so that a
    /// change in the machine's speed affects all of them. Speed-ups are medians of the ratios of
    /// single steps, or of rounds, to the first model's. The prompts do not matter, and no pictures
    /// are written.
    ///
    /// MACs are multiply-accumulates, as `inspect` counts them. The floor of a step is the time
    /// that its MACs take at the rate of a large matrix product, which is measured in every round;
    /// floor and GFLOPS leave out text tokens that equal others and are computed once. Peak memory
    /// is that of a process that generates with this model alone, although all models are in memory
    /// while they are timed.
    Bench(BenchSettings),
    /// Convert a single-file checkpoint, as used by ComfyUI and A1111, to a model folder
    Convert(ConvertSettings),
    /// Convert a model that secateur made smaller to a folder that other tools load
    Export(ExportArgs),
}

/// Arguments of every command that makes a new model.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    pub(crate) model: ModelSettings,
    /// Folder to write the new model to
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    pub(crate) out: Option<PathBuf>,
    /// Continue an interrupted run for the same --out without repeating finished work
    #[arg(long)]
    pub(crate) resume: bool,
    /// Print what would be done, and the memory and time it takes, then stop
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MethodArgs<T: Args> {
    #[command(flatten)]
    pub(crate) settings: T,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompressArgs {
    /// Recipe, a TOML file that lists the methods
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: PathBuf,
    #[command(flatten)]
    pub(crate) shared: SharedSettings,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) settings: InspectSettings,
    /// Show blocks, what can be removed from them, and what each feeds, in place of the layers
    #[arg(long, conflicts_with = "memory")]
    pub(crate) tree: bool,
    /// Show the memory that one call of the denoiser takes, in place of the layers
    #[arg(long)]
    pub(crate) memory: bool,
    /// Number of pictures computed at a time that --memory assumes [default: 8]
    #[arg(long, value_name = "N", requires = "memory")]
    pub(crate) batch: Option<Positive>,
    /// Where --memory counts for
    #[command(flatten)]
    pub(crate) device: DeviceSettings,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Fill the heads, dimensions and neurons that were removed with zeros: full size, same
    /// pictures
    #[arg(long, required = true)]
    pub(crate) densify: bool,
    #[command(flatten)]
    pub(crate) settings: ExportSettings,
}
