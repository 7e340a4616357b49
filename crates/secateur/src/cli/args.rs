//! The command line.

use clap::{Args, Parser, Subcommand};
use secateur::settings::{
    BenchSettings, CompareSettings, ConvertSettings, DeviceSettings, ExportSettings,
    GenerateSettings, InspectSettings, ModelSettings, Positive, PruneSettings, SharedSettings,
    SkipSettings, SlimSettings,
};
use std::path::PathBuf;

/// Make a diffusion model smaller and faster, and see what it cost.
///
/// Exit codes: 0 done; 1 something failed, and the output was not written; 2 the command line is
/// wrong; 130 interrupted.
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
    /// Replace an output folder that exists, if secateur wrote it and nothing in it was changed;
    /// throw away an unfinished run
    #[arg(long, global = true)]
    pub(crate) force: bool,
    /// No progress
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Threads to compute with [default: the physical cores]
    #[arg(long, global = true, value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Remove weights: calibrate, prune, save, and report what it cost
    Prune(Box<PruneArgs>),
    /// Put attention in low rank and remove neurons (SlimDiff): calibrate, make smaller, save, and
    /// report what it cost
    Slim(Box<SlimArgs>),
    /// Learn which blocks to compute at which denoising step (DiP-GO), and write a model that skips
    /// the others
    ///
    /// Ctrl-C ends it early: the model is written by the schedule that came closest so far, and
    /// --resume goes on.
    Skip(Box<SkipArgs>),
    /// Run several of prune, slim and skip after each other, as a recipe says, with one report of
    /// all
    ///
    /// A recipe is a TOML file with a table `[[method]]` for each, in order: `name`, and the
    /// options of that command without the dashes. Options of this command may stand before the
    /// first, such as `samples = 50`; the command line goes first. Each method works on what those
    /// before it left, and learns on that; of prune and slim those that would calibrate alike
    /// calibrate once.
    Compress(Box<CompressArgs>),
    /// Make pictures from prompts
    Generate(GenerateSettings),
    /// Show layers, shapes, parameters, zeros and multiply-accumulates
    Inspect(InspectArgs),
    /// Make pictures of two models from the same noise and score them
    Compare(CompareSettings),
    /// Time models side by side: latency, images a second, multiply-accumulates, memory
    ///
    /// In every round each model draws a batch. The models take turns at every step, so that a
    /// machine that gets faster or slower does so for all of them; speed-ups are medians of the
    /// ratios of single steps, or rounds, to the first model's. What is drawn does not matter, and
    /// no picture is written.
    ///
    /// MACs are those of inspect. The floor of a step is the time that its MACs take at the rate of
    /// a large matrix product, which is measured in every round; floor and GFLOPS leave out text
    /// tokens that are equal to others and computed once. Peak memory is that of a process that
    /// draws with this model alone; all models are held at once while they are timed.
    Bench(BenchSettings),
    /// Make a model folder of a checkpoint in one file, as ComfyUI and A1111 read them
    Convert(ConvertSettings),
    /// Make a model folder that other tools load of one that secateur made smaller
    Export(ExportArgs),
}

/// What everything takes that makes a model of a model.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    pub(crate) model: ModelSettings,
    /// Folder for the new model
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    pub(crate) out: Option<PathBuf>,
    /// Go on with a run for the same --out that was stopped; what it finished is not done again
    #[arg(long)]
    pub(crate) resume: bool,
    /// Print what would be done and what it takes, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    #[command(flatten)]
    pub(crate) settings: PruneSettings,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SlimArgs {
    #[command(flatten)]
    pub(crate) settings: SlimSettings,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SkipArgs {
    #[command(flatten)]
    pub(crate) settings: SkipSettings,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompressArgs {
    /// The recipe
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
    /// Show blocks, what can be removed of them, and what each feeds, in place of the layers
    #[arg(long, conflicts_with = "memory")]
    pub(crate) tree: bool,
    /// Print the memory that a call of the denoiser takes, in place of the layers
    #[arg(long)]
    pub(crate) memory: bool,
    /// Images at a time that --memory counts with [default: 8]
    #[arg(long, value_name = "N", requires = "memory")]
    pub(crate) batch: Option<Positive>,
    /// Where --memory counts for
    #[command(flatten)]
    pub(crate) device: DeviceSettings,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Put zeros in place of the heads, dimensions and neurons that were removed: the full
    /// size, the same pictures
    #[arg(long, required = true)]
    pub(crate) densify: bool,
    #[command(flatten)]
    pub(crate) settings: ExportSettings,
}
