//! What a model is calibrated on.

use crate::calibration::weighting::Weighting;
use secateur_models::Sampling;

/// What the model is run on, and how much each step counts.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// One image a prompt.
    pub prompts: Vec<String>,
    /// Steps, guidance, seed and batch.
    pub sampling: Sampling,
    /// Weights of the steps.
    pub weighting: Weighting,
    /// One of every `token_stride` tokens is summed up into the Hessians, for all of them: 1 sums
    /// up all. Tokens of one image say much the same, and products of them are a good part of a
    /// calibration's time.
    pub token_stride: usize,
}
