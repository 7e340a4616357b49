//! Settings of the jobs that are not methods.

use super::device::DeviceSettings;
use super::model::{ModelSettings, SamplingSettings, ScoreSettings, SkippingSettings};
use super::number::Positive;
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Make pictures from prompts.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct GenerateSettings {
    /// The model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelSettings,
    /// Folder for the pictures: 0000.png and so on
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Prompts or labels, one a line [default: the first 8 of the model's held-out list]
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompts: Option<PathBuf>,
    /// A prompt or label; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// Use only the first N prompts; of a model that takes none, make N pictures [default there: 8]
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
    /// Print each operation's share of the time
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
    /// Read the weights too, and show how many are zero
    #[arg(long, conflicts_with_all = ["memory", "tree"])]
    pub zeros: bool,
}

/// Make pictures of two models from the same noise and score them.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct CompareSettings {
    /// Reference model folder
    pub reference: PathBuf,
    /// Candidate model folder
    pub candidate: PathBuf,
    /// Variant of the weight files, such as fp16
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Folder for a report with the pictures
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Prompts, one a line [default: the model's held-out list]
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Use only the first N prompts; of models that take none, make N pictures [default: 64]
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

/// Time models side by side.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[command(mut_arg("batch", |batch| batch.help("Images at a time [default: 1]")))]
pub struct BenchSettings {
    /// Model folders of one pipeline class; the others are held against the first
    #[arg(value_name = "MODEL", required = true)]
    pub models: Vec<PathBuf>,
    /// Variant of the weight files, such as fp16
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// Rounds, in each of which every model draws a batch [default: 5]
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

/// Make a model folder of a checkpoint in one file.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ConvertSettings {
    /// Checkpoint of Stable Diffusion 1, 2, XL or 3, or FLUX: one .safetensors file with the
    /// original names
    pub file: PathBuf,
    /// Folder of the same kind of model in the diffusers layout: configurations, tokenizers, and
    /// what the file lacks
    #[arg(long, value_name = "FOLDER")]
    pub like: PathBuf,
    /// Folder for the model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace a folder that secateur wrote.
    #[arg(skip)]
    pub force: bool,
}

/// Put zeros in place of what was removed of a model: the full size, the same pictures.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ExportSettings {
    /// The model.
    #[command(flatten)]
    #[serde(flatten)]
    pub model: ModelSettings,
    /// Folder for the model
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace a folder that secateur wrote.
    #[arg(skip)]
    pub force: bool,
}
