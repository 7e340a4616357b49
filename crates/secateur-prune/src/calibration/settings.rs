//! Settings of a calibration.

use crate::calibration::weighting::Weighting;
use secateur_models::Sampling;

/// Settings of a calibration: the run of the model, and the weights of the steps.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// The prompts. One image is drawn for each.
    pub prompts: Vec<String>,
    /// Steps, guidance, seed and batch size.
    pub sampling: Sampling,
    /// Weights of the steps.
    pub weighting: Weighting,
    /// One of every `token_stride` tokens is summed into the Hessians, and stands for all of them.
    /// With 1 all are summed. Tokens of one image are similar, and their products take much of a
    /// calibration's time.
    pub token_stride: usize,
}

impl Calibration {
    /// A calibration with the default weights of the steps and all tokens.
    #[must_use]
    pub fn new(prompts: Vec<String>, sampling: Sampling) -> Self {
        Self { prompts, sampling, weighting: Weighting::default(), token_stride: 1 }
    }
}
