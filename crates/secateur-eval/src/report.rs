//! What a run says about itself, as plain data. Numbers that are not finite are stored as `null`
//! and read as NaN.

use crate::error::{Error, Result};
use crate::summary::Summary;
use crate::summary::null_is_nan;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Everything a run reports. `report.json` is this, and `report.html` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this layout: [`Report::FORMAT_VERSION`].
    pub format_version: u32,
    /// Heading of the page.
    pub title: String,
    /// The exact command line.
    pub command: String,
    /// Version of secateur that wrote the report.
    pub secateur_version: String,
    /// Seed of every random number of the run.
    pub seed: u64,
    /// The settings of the run, by name, in the order in which they are to be shown.
    pub settings: Map<String, Value>,
    /// The models, the reference first.
    pub models: Vec<ModelSummary>,
    /// The pictures of two models compared, where that was done.
    pub comparison: Option<Comparison>,
    /// The layers that were changed, in the order of the model.
    pub layers: Vec<LayerReport>,
    /// The heads and neurons, some of which were removed, in the order of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupReport>,
    /// What is not computed at every step, where a model was made to skip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipping: Option<SkippingReport>,
    /// The stages of the run, in order.
    pub stages: Vec<Stage>,
    /// Peak memory of the whole run in bytes.
    pub peak_bytes: u64,
    /// Remarks for the reader.
    pub notes: Vec<String>,
}

/// One model in figures. Parameters, zeros and multiply-adds are those of the denoiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// Name, as in [`Comparison::reference`] and [`Comparison::candidate`].
    pub name: String,
    /// Stored parameters, zeros included.
    pub parameters: u64,
    /// Parameters that are exactly zero.
    pub zeros: u64,
    /// Multiply-accumulate operations of one forward of one sample, as if zeros were computed.
    pub macs: u64,
    /// Size of the model's files in bytes.
    pub file_bytes: u64,
    /// Median processor time of a denoising step for one of the report's pictures, over all
    /// threads, in seconds; where some were drawn and the system tells. Unlike the time on the
    /// clock it is hardly moved by what else the machine does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<f64>,
}

/// The pictures of two models from the same prompts and the same noise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Name of the model that sets the standard.
    pub reference: String,
    /// Name of the model that is judged.
    pub candidate: String,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance scale.
    pub guidance: f64,
    /// [`psnr_capped`](crate::psnr_capped) of the pictures in dB.
    pub psnr: Summary,
    /// [`ssim`](crate::metrics::ssim) of the pictures.
    pub ssim: Summary,
    /// [`relative_error`](crate::relative_error) of the latents after the last step.
    pub latent_error: Summary,
    /// Text-image scores, where a scoring model was given.
    pub text_image: Option<TextImage>,
    /// The prompts one by one, in the order in which they were given.
    pub prompts: Vec<PromptRow>,
}

/// How well the pictures fit their prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextImage {
    /// Name of the scoring model.
    pub model: String,
    /// Cosine similarity of prompt and picture, for the reference.
    pub score_reference: Summary,
    /// Cosine similarity of prompt and picture, for the candidate.
    pub score_candidate: Summary,
    /// Share of the reference's pictures, in \[0, 1\], whose own text scores highest among all
    /// choices: of a model that knows classes, how often the picture is taken for one of its class.
    pub top1_reference: f64,
    /// The same for the candidate.
    pub top1_candidate: f64,
    /// Number of texts to choose from: the prompts, or one a class.
    pub choices: usize,
}

/// The metrics of one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptRow {
    /// The prompt.
    pub prompt: String,
    /// PSNR in dB.
    #[serde(deserialize_with = "null_is_nan")]
    pub psnr: f64,
    /// Structural similarity.
    #[serde(deserialize_with = "null_is_nan")]
    pub ssim: f64,
    /// Relative error of the latents.
    #[serde(deserialize_with = "null_is_nan")]
    pub latent_error: f64,
    /// Text-image score of the reference's picture.
    pub score_reference: Option<f64>,
    /// Text-image score of the candidate's picture.
    pub score_candidate: Option<f64>,
}

/// What was done to one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Name of the layer in the checkpoint.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Share of the weights, in \[0, 1\], that are zero or gone.
    #[serde(deserialize_with = "null_is_nan")]
    pub sparsity: f64,
    /// Squared error of the layer's output on the calibration data, relative to the squared output:
    /// `tr(D H D^T) / tr(W H W^T)` with `D` the change of the weight `W` and `H` the Hessian.
    #[serde(deserialize_with = "null_is_nan")]
    pub error: f64,
    /// Damping of the Hessian relative to the mean of its diagonal; 0 where none was used.
    #[serde(deserialize_with = "null_is_nan")]
    pub damping: f64,
    /// Number of the module package in which the layer was compressed.
    pub package: usize,
}

/// Heads, neurons or dimensions of one module, some of which were removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    /// Name of the module.
    pub name: String,
    /// `heads`, `neurons`, or which dimensions of heads.
    pub kind: String,
    /// How many there were.
    pub count: usize,
    /// How many went.
    pub removed: usize,
    /// Relative squared error of the product that they are a part of, over the calibration, where
    /// it is not in the layers'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// The same of the whole attention, after the softmax and the output projection, where it was
    /// measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_error: Option<f64>,
}

/// What a model computes at which call of a run, and other ways to as little work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SkippingReport {
    /// `block`, `branch` or `residual`: what is used again.
    pub kind: String,
    /// Names of the units, in execution order.
    pub units: Vec<String>,
    /// Calls of the denoiser x units: whether it is computed.
    pub computed: Vec<Vec<bool>>,
    /// Of the forecast of what is not computed; 0 where it is used again as it was.
    #[serde(default)]
    pub order: usize,
    /// Share of the multiply-accumulates of a run that is left.
    pub kept: f64,
    /// The loss, and the share that was kept, of each iteration in which it was learned.
    pub history: Vec<(f64, f64)>,
    /// This and other ways.
    pub ways: Vec<WayReport>,
}

/// A way to do less, against the whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WayReport {
    /// What it is.
    pub name: String,
    /// Share of the multiply-accumulates of the whole run.
    pub kept: f64,
    /// How many times faster its runs were, from noise to latents: the median over batches that
    /// were drawn by turns.
    pub speed_up: Option<f64>,
    /// [`psnr_capped`](crate::psnr_capped) of the pictures in dB.
    pub psnr: f64,
    /// [`ssim`](crate::metrics::ssim) of the pictures.
    pub ssim: f64,
    /// [`relative_error`](crate::relative_error) of the latents.
    pub latent_error: f64,
    /// Text-image score.
    pub score: Option<f64>,
    /// Share of the pictures whose own text scores highest.
    pub top1: Option<f64>,
}

impl WayReport {
    /// Of a comparison with the whole run.
    #[must_use]
    pub fn new(comparison: &Comparison, kept: f64, speed_up: Option<f64>) -> Self {
        let scores = comparison.text_image.as_ref();
        Self {
            name: comparison.candidate.clone(),
            kept,
            speed_up,
            psnr: comparison.psnr.mean,
            ssim: comparison.ssim.mean,
            latent_error: comparison.latent_error.mean,
            score: scores.map(|scores| scores.score_candidate.mean),
            top1: scores.map(|scores| scores.top1_candidate),
        }
    }
}

/// One stage of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Name.
    pub name: String,
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// What the products of the stage would take at the machine's rate, in seconds, where it is
    /// known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_seconds: Option<f64>,
    /// Peak memory of the process during the stage, in bytes; up to its end where the system cannot
    /// tell more.
    pub peak_bytes: u64,
}

impl Report {
    /// The layout that this version writes and reads.
    pub const FORMAT_VERSION: u32 = 1;

    /// The report as indented JSON, ending in a line feed.
    pub fn to_json(&self) -> String {
        let mut json =
            serde_json::to_string_pretty(self).expect("every field of a report has a JSON form");
        json.push('\n');
        json
    }

    /// Reads what [`Report::to_json`] wrote.
    ///
    /// # Errors
    /// The text is not JSON, a field is missing, or the format version is another one.
    pub fn from_json(json: &str) -> Result<Self> {
        // The version first: the fields of another version may differ, and would hide the real
        // cause.
        let value: Value = serde_json::from_str(json).map_err(|source| Error::Json { source })?;
        match value.get("format_version").and_then(Value::as_u64) {
            Some(found) if found != u64::from(Self::FORMAT_VERSION) => {
                Err(Error::FormatVersion { found, known: Self::FORMAT_VERSION })
            }
            _ => serde_json::from_value(value).map_err(|source| Error::Json { source }),
        }
    }
}
