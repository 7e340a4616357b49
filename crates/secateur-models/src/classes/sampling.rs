//! The settings of sampling.

use crate::reuse::ReuseSchedule;
use crate::samplers::Sampler;
use std::ops::Range;
use std::sync::Arc;

/// The settings of sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Number of denoising steps.
    pub steps: usize,
    /// Height and width of the latents.
    pub latent: (usize, usize),
    /// Guidance scale; 1 or less switches guidance off.
    pub guidance: f64,
    /// The negative prompt, away from which guidance leads.
    pub negative_prompt: String,
    /// Number of text tokens for T5, including those that are zeros if there is no T5.
    pub max_sequence_length: usize,
    /// The sampler: the model's own, or another one.
    pub sampler: Sampler,
    /// Seed of the noise.
    pub seed: u64,
    /// Number of images in a batch.
    pub batch: usize,
    /// The units that do not run at every step, if any.
    pub reuse: Option<Arc<ReuseSchedule>>,
}

impl Sampling {
    /// Splits the images 0 to `count` into batches.
    pub fn batches(&self, count: usize) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
        let batch = self.batch.max(1);
        (0..count).step_by(batch).map(move |start| start..(start + batch).min(count))
    }
}
