//! Settings of the jobs that are not methods.

use super::device::DeviceSettings;
use super::model::{ModelSettings, SamplingSettings, ScoreSettings, SkippingSettings};
use super::number::Positive;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Generate pictures from prompts.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct GenerateSettings {
    /// The model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelSettings,
    /// Folder to write the pictures to, as 0000.png, 0001.png and so on
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// File of prompts or labels, one per line [default: the first 8 of the model's held-out list]
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompts: Option<PathBuf>,
    /// Prompt or label to generate a picture of; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Use only the first N prompts; for a model without prompts, generate N pictures [default for
    /// such a model: 8]
    #[arg(long, value_name = "N")]
    pub samples: Option<Positive>,
    /// How to sample.
    #[command(flatten)]
    #[serde(flatten)]
    pub sampling: SamplingSettings,
    /// How to skip.
    #[command(flatten)]
    #[serde(flatten)]
    pub skipping: SkippingSettings,
    /// Where to compute.
    #[command(flatten)]
    #[serde(flatten)]
    pub device: DeviceSettings,
    /// Print the share of the time that each operation takes
    #[arg(long)]
    pub profile: bool,
    /// Replace a folder that secateur wrote.
    #[arg(skip)]
    pub force: bool,
}

/// Show layers, shapes, parameters, zeros and multiply-accumulates.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct InspectSettings {
    /// The model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelSettings,
    /// Also read the weights, and show the share of zeros in each layer
    #[arg(long, conflicts_with_all = ["memory", "tree"])]
    pub zeros: bool,
}

/// Compare two models on pictures generated from the same noise.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct CompareSettings {
    /// Folder of the reference model
    pub reference: PathBuf,
    /// Folder of the model to compare with the reference
    pub candidate: PathBuf,
    /// Variant of the weight files to read, such as fp16 [default: the plain files, or the only
    /// variant that exists]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Folder to write a report with the pictures to [default: scores are printed, no report is
    /// written]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// File of prompts or labels, one per line [default: the model's held-out list]
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Use only the first N prompts; for models without prompts, generate N pictures [default: 64]
    #[arg(long, value_name = "N")]
    pub samples: Option<Positive>,
    /// How to sample.
    #[command(flatten)]
    #[serde(flatten)]
    pub sampling: SamplingSettings,
    /// How to skip.
    #[command(flatten)]
    #[serde(flatten)]
    pub skipping: SkippingSettings,
    /// How to score.
    #[command(flatten)]
    #[serde(flatten)]
    pub score: ScoreSettings,
    /// Where to compute.
    #[command(flatten)]
    #[serde(flatten)]
    pub device: DeviceSettings,
    /// Replace a folder that secateur wrote.
    #[arg(skip)]
    pub force: bool,
    /// How the report says that it was made.
    #[arg(skip)]
    pub command: String,
}

/// Measure the speed and memory of models side by side.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(mut_arg("batch", |batch| batch.help(
    "Number of pictures computed at a time [default: 1]"
)))]
pub struct BenchSettings {
    /// Model folders of one pipeline class; speed-ups are relative to the first
    #[arg(value_name = "MODEL", required = true)]
    pub models: Vec<PathBuf>,
    /// Variant of the weight files to read, such as fp16 [default: the plain files, or the only
    /// variant that exists]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Number of rounds; each model generates one batch per round [default: 5]
    #[arg(long, value_name = "N")]
    pub repeats: Option<Positive>,
    /// How to sample.
    #[command(flatten)]
    #[serde(flatten)]
    pub sampling: SamplingSettings,
    /// How to skip.
    #[command(flatten)]
    #[serde(flatten)]
    pub skipping: SkippingSettings,
    /// Where to compute.
    #[command(flatten)]
    #[serde(flatten)]
    pub device: DeviceSettings,
}

/// Convert a single-file checkpoint to a model folder.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ConvertSettings {
    /// Single .safetensors checkpoint of Stable Diffusion 1, 2, XL or 3, or of FLUX, with the
    /// original tensor names
    pub file: PathBuf,
    /// Folder of a model of the same kind in the diffusers layout; gives the configurations, the
    /// tokenizers, and any component that the checkpoint lacks
    #[arg(long, value_name = "FOLDER")]
    pub like: PathBuf,
    /// Folder to write the new model to
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace a folder that secateur wrote.
    #[arg(skip)]
    pub force: bool,
}

/// Fill what was removed from a model with zeros: full size, same pictures.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ExportSettings {
    /// The model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelSettings,
    /// Folder to write the new model to
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace a folder that secateur wrote.
    #[arg(skip)]
    pub force: bool,
}
