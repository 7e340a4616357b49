//! The result of a calibration for one input.

use crate::error::Result;
use candle_core::Tensor;
use secateur_nn::ops;

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

/// [`InputStatistics`] as many are held: with the [bands](ops::whole_gram) of the Hessian alone,
/// little more than half of it.
#[derive(Clone, Debug)]
pub struct PackedStatistics(InputStatistics);

impl PackedStatistics {
    /// `statistics` has the bands in place of the Hessian.
    pub(crate) fn new(statistics: InputStatistics) -> Self {
        Self(statistics)
    }

    /// The bands of the Hessian.
    pub(crate) fn bands(&self) -> &Tensor {
        &self.0.hessian
    }

    /// What is held whole.
    pub(crate) fn columns(&self) -> &InputStatistics {
        &self.0
    }

    /// The statistics with the whole Hessian, where its bands are.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn whole(&self) -> Result<InputStatistics> {
        let hessian = ops::whole_gram(&self.0.hessian, self.0.width())?;
        Ok(InputStatistics { hessian, ..self.0.clone() })
    }
}

impl InputStatistics {
    /// The statistics, to be held.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn packed(self) -> Result<PackedStatistics> {
        let hessian = ops::bands_of_gram(&self.hessian)?;
        Ok(PackedStatistics(Self { hessian, ..self }))
    }

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
