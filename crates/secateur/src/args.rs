//! The command line.

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use secateur_models::{Sampler, UnitKind};
use secateur_prune::{
    Allocation, Dsnot, L1, Magnitude, Method, Obs, StructuredMethod, Taylor, Wanda, Weighting,
};
use std::fmt;
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
    /// The output is part of another one's progress.
    #[arg(skip)]
    pub(crate) part: bool,
    /// What comes after it takes that many seconds.
    #[arg(skip)]
    pub(crate) later: f64,
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
    Generate(GenerateArgs),
    /// Show layers, shapes, parameters, zeros and multiply-accumulates
    Inspect(InspectArgs),
    /// Make pictures of two models from the same noise and score them
    Compare(CompareArgs),
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
    Bench(BenchArgs),
    /// Make a model folder of a checkpoint in one file, as ComfyUI and A1111 read them
    Convert(ConvertArgs),
    /// Make a model folder that other tools load of one that secateur made smaller
    Export(ExportArgs),
}

/// A model folder.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Model folder in the diffusers layout [default: models/emoji-mmdit under the current folder]
    pub(crate) model: Option<PathBuf>,
    /// Variant of the weight files, such as fp16 [default: the plain files, or the only variant
    /// there is]
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
}

/// How to sample; the defaults travel with the model.
#[derive(Debug, Args, PartialEq)]
pub(crate) struct SamplingArgs {
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) steps: Option<usize>,
    /// Height of the pictures in pixels [default: what the model was trained for]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) height: Option<usize>,
    /// Width of the pictures in pixels [default: what the model was trained for]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) width: Option<usize>,
    /// Sampler: ddim, ddpm, pndm, euler, euler-ancestral, heun, dpm-solver or flow-match-euler,
    /// with the settings of the model's own [default: the model's]
    #[arg(long, value_name = "NAME")]
    pub(crate) sampler: Option<Sampler>,
    /// Guidance scale; 1 switches it off [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub(crate) guidance: Option<f64>,
    /// What guidance leads away from
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) negative_prompt: String,
    /// Seed of the noise
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Images at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    pub(crate) batch: usize,
}

/// For models that skip.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct SkippingArgs {
    /// Of a model that skips blocks: sample with another sampler or number of steps than it was
    /// learned for, each call like the one at the nearest place of the run
    #[arg(long)]
    pub(crate) adapt: bool,
}

/// How to score pictures against their prompts.
#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// CLIP folder for the text-image score [default: the model's]
    #[arg(long, value_name = "DIR")]
    pub(crate) clip: Option<PathBuf>,
}

/// What to draw, to learn from and for the report.
#[derive(Debug, Args, PartialEq)]
pub(crate) struct PromptArgs {
    /// Calibration prompts, one a line, or the column prompt, caption or text of CSV, TSV, JSON or
    /// JSONL; labels, by name or number, for a model that knows classes [default: the first of the
    /// model's own list]
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Use only the first N calibration prompts; for a model that takes none, calibrate with N
    /// pictures [default: 100, where there is no --prompts]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) samples: Option<usize>,
    /// Prompts of the report, one a line [default: the model's held-out list, or a tenth of
    /// --prompts kept back]
    #[arg(long, value_name = "FILE")]
    pub(crate) report_prompts: Option<PathBuf>,
    /// Pictures of each model in the report; 0 leaves the comparison out
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count)]
    pub(crate) report_samples: usize,
}

/// What everything takes that makes a model of a model.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Folder for the new model
    #[arg(long, value_name = "DIR", required_unless_present = "dry_run")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prompts: PromptArgs,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) score: ScoreArgs,
    /// Go on with a run for the same --out that was stopped; what it finished is not done again
    #[arg(long)]
    pub(crate) resume: bool,
    /// Print what would be done and what it takes, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What every method takes that calibrates.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,
    /// How much each denoising step counts: uniform, linear-decrease, linear-increase, log-decrease
    /// or log-increase, between 0.8 and 1.2; or measured, by what errors made at the step come to
    /// in the end
    #[arg(long, value_name = "NAME", default_value_t = Weighting::default())]
    pub(crate) weighting: Weighting,
    /// Sum up one of every N tokens into the Hessians, for all of them; 1 sums up all
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = positive)]
    pub(crate) token_stride: usize,
    /// Work in N module packages, each calibrated with those before it compressed
    #[arg(long, value_name = "N", value_parser = positive, conflicts_with = "memory")]
    pub(crate) packages: Option<usize>,
    /// Memory of the whole process: as few packages as fit [default: what the model takes, and 4
    /// GiB for statistics and solver]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// Only layers whose name matches, such as 'transformer_blocks.0.*'; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,
    /// Leave out layers whose name matches; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<String>,
    /// Save the calibration statistics, for other sparsities and methods later (one package)
    #[arg(long, value_name = "DIR", conflicts_with_all = ["statistics", "resume"])]
    pub(crate) save_statistics: Option<PathBuf>,
    /// Use saved statistics in place of a calibration
    #[arg(long, value_name = "DIR")]
    pub(crate) statistics: Option<PathBuf>,
    /// Save the statistics as the new model has them, for another method to use on it (one
    /// package); the inputs of all attentions and feed-forwards are watched for that
    #[arg(long, value_name = "DIR")]
    pub(crate) carry_statistics: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// How weights, or heads and neurons, are chosen
    #[arg(long, value_enum, default_value_t = MethodName::Obs)]
    pub(crate) method: MethodName,
    /// Share of the weights to remove, anywhere in a layer [default: 0.5]; with --structured, share
    /// of the heads and neurons [default: 0.3]
    #[arg(long, value_name = "SHARE", conflicts_with = "pattern")]
    pub(crate) sparsity: Option<f64>,
    /// Remove whole attention heads and neurons of feed-forwards, so that the model gets smaller:
    /// heads, neurons, or both
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        num_args = 0..=1,
        require_equals = true,
        value_delimiter = ',',
        default_missing_value = "heads,neurons",
        conflicts_with = "pattern"
    )]
    pub(crate) structured: Vec<GroupName>,
    /// With --structured, leave N transformer blocks at either end whole
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    pub(crate) keep_ends: usize,
    /// With --structured, leave a multiple of N neurons where there is one, which products and N:M
    /// patterns like; 1 for the exact share
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    pub(crate) multiple: usize,
    /// Remove N of every M successive weights of a row, such as 2:4
    #[arg(long, value_name = "N:M")]
    pub(crate) pattern: Option<String>,
    /// Remove the same share everywhere (uniform), or less where it hurts more, so that as much
    /// goes in total: of the parameters, or of the macs (multiply-accumulates) [default: uniform;
    /// of heads and neurons parameters]
    #[arg(long, value_name = "HOW")]
    pub(crate) allocation: Option<Allocation>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
#[command(mut_arg("samples", |samples| samples.help(
    "Use only the first N calibration prompts; for a model that takes none, calibrate with N \
     pictures [default: as many as \
     make 500 samples, each a picture at a denoising step, where there is no --prompts]"
)))]
pub(crate) struct SlimArgs {
    /// Share of the denoiser's parameters to remove [default: 0.12, where there is no --speedup]
    #[arg(long, value_name = "SHARE", conflicts_with = "speedup")]
    pub(crate) budget: Option<f64>,
    /// Remove multiply-accumulates until N times fewer are left
    #[arg(long, value_name = "N")]
    pub(crate) speedup: Option<f64>,
    /// What is made smaller: query-key, value-output, feed-forward
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        value_delimiter = ',',
        default_values_t = [ModuleName::QueryKey, ModuleName::ValueOutput, ModuleName::FeedForward]
    )]
    pub(crate) modules: Vec<ModuleName>,
    /// Where value and output may differ least from before: on the values of all tokens, or on what
    /// attention makes of them
    #[arg(long, value_enum, default_value_t = RowsName::Values)]
    pub(crate) rows: RowsName,
    /// How neurons are chosen: by OBS, which goes by the weights too, or by their leverage alone,
    /// as in MoDeGPT
    #[arg(long, value_enum, default_value_t = NeuronsName::Obs)]
    pub(crate) neurons: NeuronsName,
    /// Less where it hurts more, by influence or by MoDeGPT's softmax of it, or the same share
    /// everywhere
    #[arg(long, value_enum, default_value_t = RuleName::Influence)]
    pub(crate) allocation: RuleName,
    /// Leave a multiple of N dimensions of a head, or neurons, where there is one
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    pub(crate) multiple: usize,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
#[command(mut_arg("samples", |samples| samples.help(
    "Learn from no more than the first N calibration prompts, over and over; for a model that \
     takes none, from N pictures \
     [default: 32, where there is no --prompts]"
)))]
#[command(mut_arg("batch", |batch| batch.default_value("4")))]
pub(crate) struct SkipArgs {
    /// Share of a run's multiply-accumulates to keep [default: 0.4, where there is no --speedup]
    #[arg(long, value_name = "SHARE", conflicts_with = "speedup")]
    pub(crate) keep: Option<f64>,
    /// Keep so few multiply-accumulates that there are N times fewer
    #[arg(long, value_name = "N")]
    pub(crate) speedup: Option<f64>,
    /// What is used again: the output of a block, of a finer branch of a UNet, or as residual what
    /// a transformer block adds to its input
    #[arg(long, value_name = "KIND", default_value_t = UnitKind::Block)]
    pub(crate) units: UnitKind,
    /// Iterations of the optimisation at most, a run of a batch and the way back each; with 0
    /// nothing is learned, and plain rules alone are tried
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count)]
    pub(crate) iterations: usize,
    /// Exchanges of what is computed at successive calls that are tried afterwards at most, kept
    /// where pictures get closer; 0 keeps the closest of what was learned and plain rules as it is
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = count)]
    pub(crate) exchanges: usize,
    /// How pictures are compared with those of the whole run while it learns
    #[arg(long, value_enum, default_value_t = LossName::Ssim)]
    pub(crate) loss: LossName,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompressArgs {
    /// The recipe
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: PathBuf,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

/// How pictures are compared while skip learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LossName {
    /// 1 - SSIM
    Ssim,
    /// Mean absolute difference
    L1,
    /// Mean squared difference
    L2,
}

/// What SlimDiff makes smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModuleName {
    /// Dimensions of queries and keys.
    QueryKey,
    /// Dimensions of values and outputs.
    ValueOutput,
    /// Neurons of feed-forwards.
    FeedForward,
}

/// The rows that value and output are fitted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RowsName {
    /// The values of all tokens
    Values,
    /// What attention makes of them
    Attention,
}

/// How slim chooses neurons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NeuronsName {
    /// Optimal Brain Surgeon, on the down projection
    Obs,
    /// Ridge leverage of the activations
    Leverage,
}

/// How slim allocates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuleName {
    /// Greedily by measured influence
    Influence,
    /// MoDeGPT's softmax of the influence
    Softmax,
    /// The same share everywhere
    Uniform,
}

/// As on the command line.
impl fmt::Display for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Folder for the pictures: 0000.png and so on
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Prompts or labels, one a line [default: the first 8 of the model's held-out list]
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompts: Option<PathBuf>,
    /// A prompt or label; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt: Vec<String>,
    /// Use only the first N prompts; of a model that takes none, make N pictures [default there: 8]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) samples: Option<usize>,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) skipping: SkippingArgs,
    /// Print each operation's share of the time
    #[arg(long)]
    pub(crate) profile: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Show blocks, what can be removed of them, and what each feeds, in place of the layers
    #[arg(long, conflicts_with = "memory")]
    pub(crate) tree: bool,
    /// Read the weights too, and show how many are zero
    #[arg(long, conflicts_with_all = ["memory", "tree"])]
    pub(crate) zeros: bool,
    /// Print the memory that a call of the denoiser takes, in place of the layers
    #[arg(long)]
    pub(crate) memory: bool,
    /// Images at a time that --memory counts with
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive,
        requires = "memory")]
    pub(crate) batch: usize,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Reference model folder
    pub(crate) reference: PathBuf,
    /// Candidate model folder
    pub(crate) candidate: PathBuf,
    /// Variant of the weight files, such as fp16
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
    /// Folder for a report with the pictures
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Prompts, one a line [default: the model's held-out list]
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Use only the first N prompts; of models that take none, make N pictures
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub(crate) samples: usize,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) skipping: SkippingArgs,
    #[command(flatten)]
    pub(crate) score: ScoreArgs,
}

#[derive(Debug, Args)]
#[command(mut_arg("batch", |batch| batch.default_value("1")))]
pub(crate) struct BenchArgs {
    /// Model folders of one pipeline class; the others are held against the first
    #[arg(value_name = "MODEL", required = true)]
    pub(crate) models: Vec<PathBuf>,
    /// Variant of the weight files, such as fp16
    #[arg(long, value_name = "NAME")]
    pub(crate) variant: Option<String>,
    /// Rounds, in each of which every model draws a batch
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub(crate) repeats: usize,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
    #[command(flatten)]
    pub(crate) skipping: SkippingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Checkpoint of Stable Diffusion 1, 2, XL or 3, or FLUX: one .safetensors file with the
    /// original names
    pub(crate) file: PathBuf,
    /// Folder of the same kind of model in the diffusers layout: configurations, tokenizers, and
    /// what the file lacks
    #[arg(long, value_name = "FOLDER")]
    pub(crate) like: PathBuf,
    /// Folder for the model
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Put zeros in place of the heads, dimensions and neurons that were removed: the full
    /// size, the same pictures
    #[arg(long, required = true)]
    pub(crate) densify: bool,
    /// Folder for the model
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum MethodName {
    /// OBS-Diff: Optimal Brain Surgeon with a timestep-weighted Hessian
    Obs,
    /// Weight times the norm of its input, per row
    Wanda,
    /// DSnoT: Wanda's choice, and then swaps that keep each row's expected output
    Dsnot,
    /// DSnoT, starting from the weights that matter least by the Hessian, per row
    DsnotHessian,
    /// The smallest weights
    Magnitude,
    /// Heads and neurons with the smallest weights
    L1,
    /// Diff-Pruning: heads and neurons that the training loss would miss least, by its gradients
    Taylor,
}

/// What --structured removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GroupName {
    /// Attention heads.
    Heads,
    /// Neurons of feed-forwards.
    Neurons,
}

impl MethodName {
    /// For weights; none where it chooses heads and neurons alone.
    pub(crate) fn method(self) -> Option<&'static dyn Method> {
        match self {
            Self::Obs => Some(&Obs),
            Self::Wanda => Some(&Wanda),
            Self::Dsnot => Some(&Dsnot::Wanda),
            Self::DsnotHessian => Some(&Dsnot::Hessian),
            Self::Magnitude => Some(&Magnitude),
            Self::L1 | Self::Taylor => None,
        }
    }

    /// For heads and neurons; none where it chooses weights alone.
    pub(crate) fn structured(self) -> Option<Box<dyn StructuredMethod>> {
        match self {
            Self::Obs => Some(Box::new(Obs)),
            Self::L1 => Some(Box::new(L1)),
            Self::Taylor => Some(Box::<Taylor>::default()),
            Self::Wanda | Self::Dsnot | Self::DsnotHessian | Self::Magnitude => None,
        }
    }
}

/// As on the command line.
impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

/// No number of images, steps, prompts, layers or pixels is larger.
const LARGEST: usize = 1_000_000;

/// A number that counts something, which may be nothing.
fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 0..=LARGEST) => Ok(number),
        Ok(_) => Err(format!("must be at most {LARGEST}")),
        Err(error) => Err(format!("{error}")),
    }
}

/// A number that counts something.
fn positive(text: &str) -> Result<usize, String> {
    match count(text)? {
        0 => Err("must be at least 1".into()),
        number => Ok(number),
    }
}
