//! How a model is sampled.

use crate::reuse::ReuseSchedule;
use crate::samplers::Sampler;
use std::ops::Range;
use std::sync::Arc;

/// How to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Denoising steps.
    pub steps: usize,
    /// Height and width of the latents.
    pub latent: (usize, usize),
    /// Guidance scale; 1 or less switches guidance off.
    pub guidance: f64,
    /// What guidance leads away from.
    pub negative_prompt: String,
    /// Text tokens of T5, or that stand for them.
    pub max_sequence_length: usize,
    /// The model's own sampler, or another one.
    pub sampler: Sampler,
    /// Seed of the noise.
    pub seed: u64,
    /// Images at a time.
    pub batch: usize,
    /// What is not computed at every step.
    pub reuse: Option<Arc<ReuseSchedule>>,
}

impl Sampling {
    /// The images 0 to `count` in batches.
    pub fn batches(&self, count: usize) -> impl Iterator<Item = Range<usize>> + Clone + use<> {
        let batch = self.batch.max(1);
        (0..count).step_by(batch).map(move |start| start..(start + batch).min(count))
    }
}
