//! Settings of a model, of its pictures and of its prompts.

use super::device::DeviceSettings;
use super::number::{Count, Positive};
use super::text;
use clap::Args;
use secateur_models::Sampler;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A model folder.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ModelSettings {
    /// Model folder in the diffusers layout [default: models/emoji-mmdit in the current folder]
    pub model: Option<PathBuf>,
    /// Variant of the weight files to read, such as fp16 [default: the plain files, or the only
    /// variant that exists]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
}

/// How to sample; the defaults travel with the model.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct SamplingSettings {
    /// Number of denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub steps: Option<Positive>,
    /// Height of the pictures in pixels [default: the height that the model was trained with]
    #[arg(long, value_name = "N")]
    pub height: Option<Positive>,
    /// Width of the pictures in pixels [default: the width that the model was trained with]
    #[arg(long, value_name = "N")]
    pub width: Option<Positive>,
    /// Sampler: ddim, ddpm, pndm, euler, euler-ancestral, heun, dpm-solver or flow-match-euler,
    /// with the settings of the model's own sampler [default: the model's]
    #[arg(long, value_name = "NAME")]
    #[serde(with = "text")]
    pub sampler: Option<Sampler>,
    /// Scale of classifier-free guidance; 1 turns it off [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// Prompt that guidance leads away from [default: empty]
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// Seed of the noise [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Number of pictures computed at a time [default: 8]
    #[arg(long, value_name = "N")]
    pub batch: Option<Positive>,
}

/// Settings for models that skip blocks.
#[derive(Clone, Copy, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct SkippingSettings {
    /// For a model that skips blocks: allow a sampler or number of steps that its schedule was not
    /// learned for; each call then follows the schedule at the nearest point of the run
    #[arg(long)]
    pub adapt: bool,
}

/// How to score pictures against their prompts.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ScoreSettings {
    /// Folder of a CLIP model for the text-image score [default: the CLIP model that comes with the
    /// model, if any]
    #[arg(long, value_name = "DIR")]
    pub clip: Option<PathBuf>,
}

/// What to draw, to learn from and for the report.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PromptSettings {
    /// File of calibration prompts: one per line, or the column prompt, caption or text of a CSV,
    /// TSV, JSON or JSONL file; for a model with classes, labels by name or number [default: the
    /// model's calibration list]
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Use only the first N calibration prompts; for a model without prompts, calibrate with N
    /// pictures [default: all of --prompts, or else 100]
    #[arg(long, value_name = "N")]
    pub samples: Option<Positive>,
    /// File of prompts for the report, one per line [default: the model's held-out list, or else a
    /// tenth of --prompts, which calibration then leaves out]
    #[arg(long, value_name = "FILE")]
    pub report_prompts: Option<PathBuf>,
    /// Number of pictures of each model in the report; 0 leaves the comparison out [default: 64]
    #[arg(long, value_name = "N")]
    pub report_samples: Option<Count>,
}

/// Settings that every method has, and that a recipe can give for all of them.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct SharedSettings {
    /// What to draw, to learn from and for the report.
    #[command(flatten)]
    #[serde(flatten)]
    pub prompts: PromptSettings,
    /// How to sample.
    #[command(flatten)]
    #[serde(flatten)]
    pub sampling: SamplingSettings,
    /// How to score.
    #[command(flatten)]
    #[serde(flatten)]
    pub score: ScoreSettings,
    /// Where to compute.
    #[command(flatten)]
    #[serde(flatten)]
    pub device: DeviceSettings,
}

impl PromptSettings {
    /// Pictures of each model in the report.
    pub(crate) fn report_samples(&self) -> usize {
        self.report_samples.map_or(64, Count::get)
    }
}

impl SamplingSettings {
    /// The seed of the noise.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    fn or(self, others: &Self) -> Self {
        let others = others.clone();
        Self {
            steps: self.steps.or(others.steps),
            height: self.height.or(others.height),
            width: self.width.or(others.width),
            sampler: self.sampler.or(others.sampler),
            guidance: self.guidance.or(others.guidance),
            negative_prompt: self.negative_prompt.or(others.negative_prompt),
            seed: self.seed.or(others.seed),
            batch: self.batch.or(others.batch),
        }
    }
}

impl SharedSettings {
    /// Returns these settings, with those of `others` for the settings that these leave out.
    #[must_use]
    pub fn or(self, others: &Self) -> Self {
        let (own, other) = (self.prompts, others.prompts.clone());
        Self {
            prompts: PromptSettings {
                prompts: own.prompts.or(other.prompts),
                samples: own.samples.or(other.samples),
                report_prompts: own.report_prompts.or(other.report_prompts),
                report_samples: own.report_samples.or(other.report_samples),
            },
            sampling: self.sampling.or(&others.sampling),
            score: ScoreSettings { clip: self.score.clip.or(others.score.clip.clone()) },
            device: DeviceSettings {
                device: self.device.device.or(others.device.device),
                dtype: self.device.dtype.or(others.device.dtype),
            },
        }
    }
}
