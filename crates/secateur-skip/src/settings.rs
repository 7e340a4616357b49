//! Settings of learning.

use crate::loss::Loss;
use secateur_models::Sampling;

/// Settings of learning.
#[derive(Clone, Debug)]
pub struct Learning {
    /// The prompts. Each iteration takes one batch of them, in turns.
    pub prompts: Vec<String>,
    /// The run to learn for, in batches of its size. Its seed is that of the noise and of the
    /// network.
    pub sampling: Sampling,
    /// The distance of pictures that is minimised.
    pub loss: Loss,
    /// The most iterations.
    pub iterations: usize,
    /// The share of the multiply-accumulates to keep, in (0, 1).
    pub keep: f64,
}
