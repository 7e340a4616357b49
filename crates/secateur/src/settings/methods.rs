//! Settings of the methods.

use super::model::SharedSettings;
use super::number::{Count, Positive};
use super::text;
use crate::error::{Result, refuse};
use bytesize::ByteSize;
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};
use secateur_models::UnitKind;
use secateur_prune::{Allocation, METHODS, NamedMethod, Weighting};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Settings of every method that calibrates.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct CalibrationSettings {
    /// Weight of each denoising step in the calibration statistics: uniform, linear-decrease,
    /// linear-increase, log-decrease or log-increase, all between 0.8 and 1.2; or measured, in
    /// proportion to the effect of an error at that step on the final latents [default:
    /// log-decrease]
    #[arg(long, value_name = "NAME")]
    #[serde(with = "text")]
    pub weighting: Option<Weighting>,
    /// Sum one of every N tokens into the statistics; 1 sums all tokens [default: 4]
    #[arg(long, value_name = "N")]
    pub token_stride: Option<Positive>,
    /// Split the layers into N packages; each is calibrated with the packages before it already
    /// compressed [default: the smallest number that fits --memory]
    #[arg(long, value_name = "N", conflicts_with = "memory")]
    pub packages: Option<Positive>,
    /// Limit on the memory of the whole process, or of a GPU that computes, such as 16GiB; to keep
    /// to it, layers are calibrated in several packages, and weights are read from the file each
    /// time they are used, whichever takes less time [default: the model's own memory plus 4 GiB;
    /// on a GPU what is free there]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Change only layers whose name matches, such as 'transformer_blocks.0.*'; may be repeated
    /// [default: all layers]
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave layers whose name matches unchanged; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Folder to save the calibration statistics to, for later runs with another method or
    /// sparsity; needs a single package
    #[arg(long, value_name = "DIR", conflicts_with = "statistics")]
    pub save_statistics: Option<PathBuf>,
    /// Folder to read saved calibration statistics from, in place of a calibration
    #[arg(long, value_name = "DIR")]
    pub statistics: Option<PathBuf>,
    /// Folder to save the calibration statistics to, converted to the new model, for a later run of
    /// another method on it; needs a single package, and records the inputs of all attention and
    /// feed-forward layers
    #[arg(long, value_name = "DIR")]
    pub carry_statistics: Option<PathBuf>,
}

impl CalibrationSettings {
    /// How much each denoising step counts.
    pub(crate) fn weighting(&self) -> Weighting {
        self.weighting.unwrap_or_default()
    }

    /// Returns the stride of tokens: one of this many is summed.
    pub(crate) fn token_stride(&self) -> usize {
        self.token_stride.map_or(4, Positive::get)
    }
}

/// Remove single weights, or whole heads and neurons.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PruneSettings {
    /// Method that chooses what to remove [default: obs]
    #[arg(long, value_parser = PossibleValuesParser::new(methods()))]
    pub method: Option<String>,
    /// Share of the weights of each layer to remove, between 0 and 1 [default: 0.5]; with
    /// --structured, share of the heads and neurons to remove [default: 0.3]
    #[arg(long, value_name = "SHARE", conflicts_with = "pattern")]
    pub sparsity: Option<f64>,
    /// Remove whole attention heads, feed-forward neurons, or both, so that the model becomes
    /// smaller [default without a value: heads,neurons]
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
    pub structured: Vec<GroupName>,
    /// With --structured, keep the first N and the last N transformer blocks unchanged [default: 1]
    #[arg(long, value_name = "N")]
    pub keep_ends: Option<Count>,
    /// With --structured, leave a number of neurons that is a multiple of N where the original
    /// number is one, for fast products and N:M patterns; 1 removes the exact share [default: 8]
    #[arg(long, value_name = "N")]
    pub multiple: Option<Positive>,
    /// Remove N of every M consecutive weights of a row, such as 2:4
    #[arg(long, value_name = "N:M")]
    pub pattern: Option<String>,
    /// How the amount to remove is divided among modules: uniform, the same share everywhere; or
    /// parameters or macs (multiply-accumulates), less where removing does more harm, with the same
    /// total of that quantity removed [default: uniform; with --structured parameters]
    #[arg(long, value_name = "HOW")]
    #[serde(with = "text")]
    pub allocation: Option<Allocation>,
    /// How it calibrates.
    #[command(flatten)]
    #[serde(flatten)]
    pub calibration: CalibrationSettings,
    /// What it has in common with all methods.
    #[command(flatten)]
    #[serde(flatten)]
    pub shared: SharedSettings,
}

/// Reduce the rank of attention and remove neurons (SlimDiff).
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(mut_arg("samples", |samples| samples.help(
    "Use only the first N calibration prompts; for a model without prompts, calibrate with N \
     pictures [default: all of --prompts, or else 500 divided by the number of denoising steps]"
)))]
pub struct SlimSettings {
    /// Share of the denoiser's parameters to remove, between 0 and 1 [default: 0.12 if --speedup is
    /// not given]
    #[arg(long, value_name = "SHARE", conflicts_with = "speedup")]
    pub budget: Option<f64>,
    /// Reduce the denoiser's multiply-accumulates by a factor of N, more than 1
    #[arg(long, value_name = "N")]
    pub speedup: Option<f64>,
    /// What to reduce: query-key, value-output, feed-forward [default: all three]
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    pub modules: Vec<ModuleName>,
    /// Rows on which the change of value and output projections is minimised [default: values]
    #[arg(long, value_enum)]
    pub rows: Option<RowsName>,
    /// How neurons to remove are chosen [default: obs]
    #[arg(long, value_enum)]
    pub neurons: Option<NeuronsName>,
    /// How the amount to remove is divided among modules [default: influence]
    #[arg(long, value_enum)]
    pub allocation: Option<RuleName>,
    /// Leave a number of head dimensions or neurons that is a multiple of N where the original
    /// number is one, for fast products; 1 removes the exact share [default: 8]
    #[arg(long, value_name = "N")]
    pub multiple: Option<Positive>,
    /// How it calibrates.
    #[command(flatten)]
    #[serde(flatten)]
    pub calibration: CalibrationSettings,
    /// What it has in common with all methods.
    #[command(flatten)]
    #[serde(flatten)]
    pub shared: SharedSettings,
}

/// Learn which blocks to compute at each denoising step (DiP-GO).
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(mut_arg("samples", |samples| samples.help(
    "Use only the first N calibration prompts; for a model without prompts, learn from N pictures \
     [default: all of --prompts, or else 32]"
)))]
#[command(mut_arg("batch", |batch| batch.help(
    "Number of pictures computed at a time [default: 4]"
)))]
pub struct SkipSettings {
    /// Share of the multiply-accumulates of a run to keep, between 0 and 1 [default: 0.4 if
    /// --speedup is not given]
    #[arg(long, value_name = "SHARE", conflicts_with = "speedup")]
    pub keep: Option<f64>,
    /// Reduce the multiply-accumulates of a run by a factor of N, more than 1
    #[arg(long, value_name = "N")]
    pub speedup: Option<f64>,
    /// What is reused when it is not computed: block, the output of a block; branch, the output of
    /// a smaller branch of a UNet; or residual, what a transformer block adds to its input
    /// [default: block]
    #[arg(long, value_name = "KIND")]
    #[serde(with = "text")]
    pub units: Option<UnitKind>,
    /// Maximum number of iterations of the optimisation, each a run of one batch and its gradients;
    /// 0 learns nothing and tries fixed rules only [default: 100]
    #[arg(long, value_name = "N")]
    pub iterations: Option<Count>,
    /// Maximum number of exchanges to try after learning, each swapping what is computed at two
    /// successive calls; an exchange is kept if it brings the pictures closer to the full model's;
    /// 0 tries none [default: 200]
    #[arg(long, value_name = "N")]
    pub exchanges: Option<Count>,
    /// How pictures are compared with those of the full model while learning [default: ssim]
    #[arg(long, value_enum)]
    pub loss: Option<LossName>,
    /// What it has in common with all methods.
    #[command(flatten)]
    #[serde(flatten)]
    pub shared: SharedSettings,
}

/// How pictures are compared while skip learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossName {
    /// 1 - SSIM
    #[default]
    Ssim,
    /// Mean absolute difference
    L1,
    /// Mean squared difference
    L2,
}

/// What SlimDiff makes smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModuleName {
    /// Dimensions of queries and keys.
    QueryKey,
    /// Dimensions of values and outputs.
    ValueOutput,
    /// Neurons of feed-forwards.
    FeedForward,
}

/// The rows that value and output are fitted on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowsName {
    /// The values of all tokens
    #[default]
    Values,
    /// The outputs of attention: the values of all tokens, averaged by their scores
    Attention,
}

/// How slim chooses neurons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NeuronsName {
    /// Optimal Brain Surgeon: by activations and by the weights of the down projection
    #[default]
    Obs,
    /// Ridge leverage, by activations only, as in MoDeGPT
    Leverage,
}

/// How slim allocates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleName {
    /// Less where removing does more harm: greedily, by the measured influence
    #[default]
    Influence,
    /// Less where removing does more harm: by MoDeGPT's softmax of the measured influence
    Softmax,
    /// The same share everywhere
    Uniform,
}

/// What structured pruning removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupName {
    /// Attention heads.
    Heads,
    /// Neurons of feed-forwards.
    Neurons,
}

/// The methods that prune, for the help.
fn methods() -> impl Iterator<Item = PossibleValue> {
    METHODS.iter().map(|method| PossibleValue::new(method.name).help(method.about))
}

impl PruneSettings {
    /// The method that chooses what to remove.
    pub(crate) fn method(&self) -> Result<&'static NamedMethod> {
        let Some(name) = &self.method else { return Ok(&METHODS[0]) };
        let Some(method) = METHODS.iter().find(|method| method.name == name) else {
            let names = METHODS.each_ref().map(|method| method.name).join(", ");
            refuse!("`method {name}` is unknown; there are {names}")
        };
        Ok(method)
    }
}
