//! Sums over the rows of a layer's inputs, in memory.

use secateur_kernels::gram::numbers_in_bands;

/// The sums in memory; empty before there are any.
#[derive(Clone, Debug, Default)]
pub struct HostSums {
    /// Of a n x^T x: the [bands](secateur_kernels::gram::bands) of width x width numbers.
    pub gram: Vec<f32>,
    /// Of a n x: width.
    pub weighted_sums: Vec<f64>,
    /// Of n x: width.
    pub sums: Vec<f64>,
    /// Of n x^2: width.
    pub squares: Vec<f64>,
}

impl HostSums {
    /// No rows yet.
    pub(super) fn zeros(width: usize) -> Self {
        let zeros = vec![0.0; width];
        let gram = vec![0.0; numbers_in_bands(width)];
        Self { gram, weighted_sums: zeros.clone(), sums: zeros.clone(), squares: zeros }
    }
}
