//! The data of a run's report. Numbers that are not finite are stored as `null` and read as NaN.

use crate::error::{Error, Result};
use crate::summary::Summary;
use crate::summary::null_is_nan;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The report of a run. `report.json` is this structure, and `report.html` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format: [`Report::FORMAT_VERSION`].
    pub format_version: u32,
    /// Title of the page.
    pub title: String,
    /// The exact command line.
    pub command: String,
    /// Version of secateur that wrote the report.
    pub secateur_version: String,
    /// Seed of all random numbers of the run.
    pub seed: u64,
    /// The settings of the run by name, in the order in which they are shown.
    pub settings: Map<String, Value>,
    /// The models, the reference first.
    pub models: Vec<ModelSummary>,
    /// The comparison of two models' pictures, if it was made.
    pub comparison: Option<Comparison>,
    /// The layers that were changed, in the model's order.
    pub layers: Vec<LayerReport>,
    /// The groups of heads or neurons that lost some, in the model's order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupReport>,
    /// The schedule of a model that skips, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipping: Option<SkippingReport>,
    /// The stages of the run, in order.
    pub stages: Vec<Stage>,
    /// Peak memory of the whole run in bytes.
    pub peak_bytes: u64,
    /// Remarks for the reader.
    pub notes: Vec<String>,
}

/// Figures of one model. Parameters, zeros and multiply-accumulates are those of the denoiser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// Name of the model, as in [`Comparison::reference`] and [`Comparison::candidate`].
    pub name: String,
    /// Stored parameters, including zeros.
    pub parameters: u64,
    /// Parameters that are exactly zero.
    pub zeros: u64,
    /// Multiply-accumulates of one forward pass for one sample, including those with zeros.
    pub macs: u64,
    /// Size of the model's files in bytes.
    pub file_bytes: u64,
    /// Median time of a denoising step for one of the report's pictures, in seconds: on the CPU
    /// processor time over all threads, which hardly depends on other load of the machine, on a
    /// GPU wall-clock time. `None` if no pictures were drawn or the system does not report the
    /// time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_seconds: Option<f64>,
}

/// The comparison of two models' pictures from the same prompts and the same noise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Name of the reference model.
    pub reference: String,
    /// Name of the candidate model.
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
    /// Text-image scores, if a scoring model was given.
    pub text_image: Option<TextImage>,
    /// The metrics of each prompt, in the order of the prompts.
    pub prompts: Vec<PromptRow>,
}

/// Text-image scores, which measure how well the pictures fit their prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextImage {
    /// Name of the scoring model.
    pub model: String,
    /// Cosine similarity of prompt and picture, for the reference.
    pub score_reference: Summary,
    /// Cosine similarity of prompt and picture, for the candidate.
    pub score_candidate: Summary,
    /// Share of the reference's pictures, in \[0, 1\], whose own text has the highest score among
    /// all choices. For a class-conditional model, that is how often a picture is recognised as its
    /// class.
    pub top1_reference: f64,
    /// The same share for the candidate.
    pub top1_candidate: f64,
    /// Number of texts to choose from: the prompts, or one text per class.
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

/// The changes of one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// Name of the layer in the checkpoint.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub columns: usize,
    /// Share of the weights, in \[0, 1\], that are zero or removed.
    #[serde(deserialize_with = "null_is_nan")]
    pub sparsity: f64,
    /// Squared error of the layer's output on the calibration data, relative to the squared output:
    /// `tr(D H D^T) / tr(W H W^T)`, where `D` is the change of the weight `W`, and `H` the Hessian.
    #[serde(deserialize_with = "null_is_nan")]
    pub error: f64,
    /// Damping of the Hessian, relative to the mean of its diagonal; 0 if none was used.
    #[serde(deserialize_with = "null_is_nan")]
    pub damping: f64,
    /// Number of the module package in which the layer was compressed.
    pub package: usize,
}

/// The changes of a group: heads, neurons or dimensions of one module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupReport {
    /// Name of the module.
    pub name: String,
    /// `heads`, `neurons`, or which dimensions of heads.
    pub kind: String,
    /// How many the group had.
    pub count: usize,
    /// How many were removed.
    pub removed: usize,
    /// Relative squared error over the calibration of the product that they are a part of, or
    /// `None` if the layers' errors contain it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// Relative squared error of the whole attention, after the softmax and the output projection,
    /// if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_error: Option<f64>,
}

/// The schedule of a model that skips, and other ways to sample with as little work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SkippingReport {
    /// The output that is reused: of a `block`, of a `branch`, or of a `residual`.
    pub kind: String,
    /// Names of the units, in execution order.
    pub units: Vec<String>,
    /// Whether each unit is computed at each call: calls of the denoiser x units.
    pub computed: Vec<Vec<bool>>,
    /// The order of the forecasts; 0 if outputs are reused unchanged.
    #[serde(default)]
    pub order: usize,
    /// Share of the multiply-accumulates of a run that is kept, in \[0, 1\].
    pub kept: f64,
    /// Loss and kept share of each iteration of learning.
    pub history: Vec<(f64, f64)>,
    /// The comparison of this schedule with other ways.
    pub ways: Vec<WayReport>,
}

/// A way to sample with less work, compared with the whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WayReport {
    /// Its name.
    pub name: String,
    /// Share of the multiply-accumulates of the whole run, in \[0, 1\].
    pub kept: f64,
    /// Speed-up of its runs, from noise to latents, as a factor: the median over batches that were
    /// drawn in turns.
    pub speed_up: Option<f64>,
    /// [`psnr_capped`](crate::psnr_capped) of the pictures in dB.
    pub psnr: f64,
    /// [`ssim`](crate::metrics::ssim) of the pictures.
    pub ssim: f64,
    /// [`relative_error`](crate::relative_error) of the latents.
    pub latent_error: f64,
    /// Mean text-image score.
    pub score: Option<f64>,
    /// Share of the pictures, in \[0, 1\], whose own text has the highest score.
    pub top1: Option<f64>,
}

impl WayReport {
    /// Creates the row of a way from its comparison with the whole run.
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
    /// Name of the stage.
    pub name: String,
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// Time in seconds that the matrix products of the stage would take at the machine's rate, if
    /// known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_seconds: Option<f64>,
    /// Peak memory of the process during the stage, in bytes. If the system cannot tell, the peak
    /// from the start of the process to the end of the stage.
    pub peak_bytes: u64,
}

impl Report {
    /// The format version that this crate writes and reads.
    pub const FORMAT_VERSION: u32 = 1;

    /// Returns the report as indented JSON, ending in a line feed.
    pub fn to_json(&self) -> String {
        let mut json =
            serde_json::to_string_pretty(self).expect("every field of a report has a JSON form");
        json.push('\n');
        json
    }

    /// Parses the output of [`Report::to_json`].
    ///
    /// # Errors
    /// The text is not JSON, a field is missing, or the format version is different.
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
