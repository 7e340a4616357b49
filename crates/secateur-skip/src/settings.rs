//! What is learned, and for which run.

use crate::loss::Loss;
use secateur_models::Sampling;

/// How to learn.
#[derive(Clone, Debug)]
pub struct Learning {
    /// One iteration a batch of them, over and over.
    pub prompts: Vec<String>,
    /// The run that is learned for, in batches of that size; its seed is that of the noise and of
    /// the network.
    pub sampling: Sampling,
    /// What is compared.
    pub loss: Loss,
    /// At most.
    pub iterations: usize,
    /// The share of the multiply-accumulates that is to be kept.
    pub keep: f64,
}
