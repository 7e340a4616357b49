//! The Hessian of a layer's output error: its damping, its factor, and the error computed with it.

use crate::error::{Error, Result};
use secateur_kernels::Panels;
use secateur_kernels::factor::{inverse_factor, inverse_factor_scratch};
use secateur_kernels::linear::linear;
use secateur_nn::LayerName;

/// The least diagonal element that is not taken for zero. The inverse of a smaller one overflows
/// f32.
const LEAST: f64 = 1e-30;
/// How many times the damping is multiplied by ten if the Hessian is not positive definite.
const ESCALATIONS: u32 = 6;

/// The factor U of an inverse Hessian: upper triangular, with H^-1 = U^T U. 1 / U_jj^2 is the
/// curvature along weight j once the columns before it are fixed. U_ij / U_ii is the correction of
/// column j per unit of error in column i.
#[derive(Clone, Debug)]
pub struct Factor {
    /// d x d, row-major; zero below the diagonal.
    pub values: Vec<f32>,
    /// Columns whose input is always zero (H_jj is 0 or negligible).
    pub dead: Vec<usize>,
    /// The value that was added to the diagonal, relative to the mean of the diagonal.
    pub damping: f64,
}

impl Factor {
    /// The default damping, relative to the mean of the diagonal. It is that of the reference.
    pub const DAMPING: f64 = 0.01;

    /// Factors `hessian` (d x d, row-major, symmetric), the Hessian of the input of `layer`: see
    /// [`inverse_factor`]. H itself is never inverted. If H is not positive definite, the damping
    /// is multiplied by ten until it is.
    ///
    /// # Errors
    /// If the Hessian holds values that are not finite, or is not positive definite with the most
    /// damping.
    pub fn new(hessian: &[f32], layer: &LayerName) -> Result<Self> {
        let columns = hessian.len().isqrt();
        let diagonal = |j: usize| f64::from(hessian[j * columns + j]);
        let dead: Vec<usize> =
            (0..columns).filter(|&j| (0.0..LEAST).contains(&diagonal(j))).collect();
        let mut diagonals: Vec<f64> = (0..columns).map(diagonal).collect();
        dead.iter().for_each(|&j| diagonals[j] = 1.0);
        let mean = diagonals.iter().sum::<f64>() / columns.max(1) as f64;
        if !mean.is_finite() || mean < 0.0 {
            return Err(Error::layer(layer, "the Hessian of its input is not finite"));
        }
        let mut values = vec![0f32; hessian.len()];
        for escalation in 0..=ESCALATIONS {
            let damping = Self::DAMPING * 10f64.powi(escalation as i32);
            values.copy_from_slice(hessian);
            for (j, diagonal) in diagonals.iter().enumerate() {
                values[j * columns + j] = (diagonal + damping * mean) as f32;
            }
            if inverse_factor(&mut values, columns).is_ok()
                && values.iter().all(|value| value.is_finite())
            {
                return Ok(Self { values, dead, damping });
            }
        }
        Err(Error::layer(
            layer,
            "the Hessian of its input is not positive definite, however much it is damped",
        ))
    }

    /// Bytes that [`Factor::new`] needs for `columns` columns, including the result.
    #[must_use]
    pub fn scratch(columns: usize) -> u64 {
        (columns * columns * size_of::<f32>()) as u64 + inverse_factor_scratch(columns)
    }
}

/// Returns the relative squared error of a layer's output over the calibration: tr(D H D^T) / tr(W
/// H W^T) with D = `pruned` - `weight` (both rows x d, row-major). Returns 0 if the output of the
/// unpruned weight is 0.
#[must_use]
pub fn hessian_error(weight: &[f32], pruned: &[f32], hessian: &[f32]) -> f64 {
    let columns = hessian.len().isqrt();
    let difference: Vec<f32> = weight.iter().zip(pruned).map(|(w, p)| p - w).collect();
    let total = energy(weight, hessian, columns);
    // Rounding can leave less than nothing.
    if total > 0.0 { energy(&difference, hessian, columns).max(0.0) / total } else { 0.0 }
}

/// tr(W H W^T).
fn energy(weight: &[f32], hessian: &[f32], columns: usize) -> f64 {
    if columns == 0 || weight.is_empty() {
        return 0.0;
    }
    let mut product = vec![0f32; weight.len()];
    // H is its own transpose.
    linear(weight, &Panels::transposed(hessian, columns), None, None, &mut product);
    weight.iter().zip(&product).map(|(&w, &p)| f64::from(w) * f64::from(p)).sum()
}
