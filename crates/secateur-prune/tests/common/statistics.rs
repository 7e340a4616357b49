//! Statistics of numbers in memory.

use candle_core::{Device, Tensor};
use secateur_prune::InputStatistics;

/// A square matrix.
pub(crate) fn square(values: &[f32]) -> Tensor {
    let side = values.len().isqrt();
    Tensor::from_slice(values, (side, side), &Device::Cpu).unwrap()
}

/// Of that Hessian, and nothing else.
pub(crate) fn with_hessian(hessian: &[f32]) -> InputStatistics {
    InputStatistics {
        hessian: square(hessian),
        weighted_sums: Vec::new(),
        weighted_rows: 0.0,
        sums: Vec::new(),
        squares: vec![0.0; hessian.len().isqrt()],
        rows: 0,
    }
}
