//! Settings of a model, of its pictures and of its prompts.

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
    /// Model folder in the diffusers layout [default: models/emoji-mmdit under the current folder]
    pub model: Option<PathBuf>,
    /// Variant of the weight files, such as fp16 [default: the plain files, or the only variant
    /// there is]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
}

/// How to sample; the defaults travel with the model.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct SamplingSettings {
    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N")]
    pub steps: Option<Positive>,
    /// Height of the pictures in pixels [default: what the model was trained for]
    #[arg(long, value_name = "N")]
    pub height: Option<Positive>,
    /// Width of the pictures in pixels [default: what the model was trained for]
    #[arg(long, value_name = "N")]
    pub width: Option<Positive>,
    /// Sampler: ddim, ddpm, pndm, euler, euler-ancestral, heun, dpm-solver or flow-match-euler,
    /// with the settings of the model's own [default: the model's]
    #[arg(long, value_name = "NAME")]
    #[serde(with = "text")]
    pub sampler: Option<Sampler>,
    /// Guidance scale; 1 switches it off [default: the model's]
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    pub guidance: Option<f64>,
    /// What guidance leads away from [default: nothing]
    #[arg(long, value_name = "TEXT")]
    pub negative_prompt: Option<String>,
    /// Seed of the noise [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Images at a time [default: 8]
    #[arg(long, value_name = "N")]
    pub batch: Option<Positive>,
}

/// For models that skip.
#[derive(Clone, Copy, Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct SkippingSettings {
    /// Of a model that skips blocks: sample with another sampler or number of steps than it was
    /// learned for, each call like the one at the nearest place of the run
    #[arg(long)]
    pub adapt: bool,
}

/// How to score pictures against their prompts.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct ScoreSettings {
    /// CLIP folder for the text-image score [default: the model's]
    #[arg(long, value_name = "DIR")]
    pub clip: Option<PathBuf>,
}

/// What to draw, to learn from and for the report.
#[derive(Clone, Debug, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct PromptSettings {
    /// Calibration prompts, one a line, or the column prompt, caption or text of CSV, TSV, JSON or
    /// JSONL; labels, by name or number, for a model that knows classes [default: the first of the
    /// model's own list]
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Use only the first N calibration prompts; for a model that takes none, calibrate with N
    /// pictures [default: 100, where there is no --prompts]
    #[arg(long, value_name = "N")]
    pub samples: Option<Positive>,
    /// Prompts of the report, one a line [default: the model's held-out list, or a tenth of
    /// --prompts kept back]
    #[arg(long, value_name = "FILE")]
    pub report_prompts: Option<PathBuf>,
    /// Pictures of each model in the report; 0 leaves the comparison out [default: 64]
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
        }
    }
}
