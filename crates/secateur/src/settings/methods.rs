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

/// What every method that calibrates has.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct CalibrationSettings {
    /// How much each denoising step counts: uniform, linear-decrease, linear-increase, log-decrease
    /// or log-increase, between 0.8 and 1.2; or measured, by what errors made at the step come to
    /// in the end [default: log-decrease]
    #[arg(long, value_name = "NAME")]
    #[serde(with = "text")]
    pub weighting: Option<Weighting>,
    /// Sum up one of every N tokens into the Hessians, for all of them; 1 sums up all [default: 4]
    #[arg(long, value_name = "N")]
    pub token_stride: Option<Positive>,
    /// Work in N module packages, each calibrated with those before it compressed
    #[arg(long, value_name = "N", conflicts_with = "memory")]
    pub packages: Option<Positive>,
    /// Memory of the whole process: as few packages as fit [default: what the model takes, and 4
    /// GiB for statistics and solver]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Only layers whose name matches, such as 'transformer_blocks.0.*'; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave out layers whose name matches; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Save the calibration statistics, for other sparsities and methods later (one package)
    #[arg(long, value_name = "DIR", conflicts_with = "statistics")]
    pub save_statistics: Option<PathBuf>,
    /// Use saved statistics in place of a calibration
    #[arg(long, value_name = "DIR")]
    pub statistics: Option<PathBuf>,
    /// Save the statistics as the new model has them, for another method to use on it (one
    /// package); the inputs of all attentions and feed-forwards are watched for that
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

/// Remove weights, or heads and neurons.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PruneSettings {
    /// How weights, or heads and neurons, are chosen [default: obs]
    #[arg(long, value_parser = PossibleValuesParser::new(methods()))]
    pub method: Option<String>,
    /// Share of the weights to remove, anywhere in a layer [default: 0.5]; with --structured, share
    /// of the heads and neurons [default: 0.3]
    #[arg(long, value_name = "SHARE", conflicts_with = "pattern")]
    pub sparsity: Option<f64>,
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
    pub structured: Vec<GroupName>,
    /// With --structured, leave N transformer blocks at either end whole [default: 1]
    #[arg(long, value_name = "N")]
    pub keep_ends: Option<Count>,
    /// With --structured, leave a multiple of N neurons where there is one, which products and N:M
    /// patterns like; 1 for the exact share [default: 8]
    #[arg(long, value_name = "N")]
    pub multiple: Option<Positive>,
    /// Remove N of every M successive weights of a row, such as 2:4
    #[arg(long, value_name = "N:M")]
    pub pattern: Option<String>,
    /// Remove the same share everywhere (uniform), or less where it hurts more, so that as much
    /// goes in total: of the parameters, or of the macs (multiply-accumulates) [default: uniform;
    /// of heads and neurons parameters]
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

/// Put attention in low rank and remove neurons (SlimDiff).
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(mut_arg("samples", |samples| samples.help(
    "Use only the first N calibration prompts; for a model that takes none, calibrate with N \
     pictures [default: as many as \
     make 500 samples, each a picture at a denoising step, where there is no --prompts]"
)))]
pub struct SlimSettings {
    /// Share of the denoiser's parameters to remove [default: 0.12, where there is no --speedup]
    #[arg(long, value_name = "SHARE", conflicts_with = "speedup")]
    pub budget: Option<f64>,
    /// Remove multiply-accumulates until N times fewer are left
    #[arg(long, value_name = "N")]
    pub speedup: Option<f64>,
    /// What is made smaller: query-key, value-output, feed-forward [default: all three]
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    pub modules: Vec<ModuleName>,
    /// Where value and output may differ least from before: on the values of all tokens, or on what
    /// attention makes of them [default: values]
    #[arg(long, value_enum)]
    pub rows: Option<RowsName>,
    /// How neurons are chosen: by OBS, which goes by the weights too, or by their leverage alone,
    /// as in MoDeGPT [default: obs]
    #[arg(long, value_enum)]
    pub neurons: Option<NeuronsName>,
    /// Less where it hurts more, by influence or by MoDeGPT's softmax of it, or the same share
    /// everywhere [default: influence]
    #[arg(long, value_enum)]
    pub allocation: Option<RuleName>,
    /// Leave a multiple of N dimensions of a head, or neurons, where there is one [default: 8]
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

/// Learn which blocks to compute at which denoising step (DiP-GO).
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(mut_arg("samples", |samples| samples.help(
    "Learn from no more than the first N calibration prompts, over and over; for a model that \
     takes none, from N pictures \
     [default: 32, where there is no --prompts]"
)))]
#[command(mut_arg("batch", |batch| batch.help("Images at a time [default: 4]")))]
pub struct SkipSettings {
    /// Share of a run's multiply-accumulates to keep [default: 0.4, where there is no --speedup]
    #[arg(long, value_name = "SHARE", conflicts_with = "speedup")]
    pub keep: Option<f64>,
    /// Keep so few multiply-accumulates that there are N times fewer
    #[arg(long, value_name = "N")]
    pub speedup: Option<f64>,
    /// What is used again: the output of a block, of a finer branch of a UNet, or as residual what
    /// a transformer block adds to its input [default: block]
    #[arg(long, value_name = "KIND")]
    #[serde(with = "text")]
    pub units: Option<UnitKind>,
    /// Iterations of the optimisation at most, a run of a batch and the way back each; with 0
    /// nothing is learned, and plain rules alone are tried [default: 100]
    #[arg(long, value_name = "N")]
    pub iterations: Option<Count>,
    /// Exchanges of what is computed at successive calls that are tried afterwards at most, kept
    /// where pictures get closer; 0 keeps the closest of what was learned and plain rules as it is
    /// [default: 200]
    #[arg(long, value_name = "N")]
    pub exchanges: Option<Count>,
    /// How pictures are compared with those of the whole run while it learns [default: ssim]
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
    /// What attention makes of them
    Attention,
}

/// How slim chooses neurons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NeuronsName {
    /// Optimal Brain Surgeon, on the down projection
    #[default]
    Obs,
    /// Ridge leverage of the activations
    Leverage,
}

/// How slim allocates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleName {
    /// Greedily by measured influence
    #[default]
    Influence,
    /// MoDeGPT's softmax of the influence
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
