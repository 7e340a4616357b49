//! The result of a calibration for one input.

use candle_core::Tensor;

/// Statistics of one distinct layer input of width d.
#[derive(Clone, Debug)]
pub struct InputStatistics {
    /// H = 2 / (sum of a_t) * sum of a_t X_t^T X_t, where a_t is the weight of the step and every
    /// sample counts once (OBS-Diff, eq. 5): d x d, symmetric, in `f32`, where it was summed.
    pub hessian: Tensor,
    /// 2 / (sum of a_t) * sum of a_t X_t^T 1, of length d: the last column of H if every row of X_t
    /// ended with a 1.
    pub weighted_sums: Vec<f32>,
    /// 2 / (sum of a_t) * sum of a_t n_t for the n_t rows of X_t: the last element of that column.
    pub weighted_rows: f64,
    /// Sum of each column over all rows, unweighted; length d.
    pub sums: Vec<f32>,
    /// Sum of squares of each column over all rows, unweighted; length d.
    pub squares: Vec<f32>,
    /// Number of rows seen, including the tokens that the summed ones stand for.
    pub rows: u64,
}

impl InputStatistics {
    /// Width of the input.
    #[must_use]
    pub fn width(&self) -> usize {
        self.squares.len()
    }

    /// The root mean square of each column, which Wanda multiplies weights by.
    pub(crate) fn norms(&self) -> Vec<f32> {
        let rows = self.rows.max(1) as f32;
        self.squares.iter().map(|square| (square / rows).sqrt()).collect()
    }

    /// The mean of each column.
    pub(crate) fn means(&self) -> Vec<f64> {
        let rows = self.rows.max(1) as f64;
        self.sums.iter().map(|&sum| f64::from(sum) / rows).collect()
    }

    /// The variance of each column.
    pub(crate) fn variances(&self) -> Vec<f64> {
        let rows = self.rows.max(1) as f64;
        let variance =
            |(&square, mean): (&f32, f64)| (f64::from(square) / rows - mean * mean).max(0.0);
        self.squares.iter().zip(self.means()).map(variance).collect()
    }
}
