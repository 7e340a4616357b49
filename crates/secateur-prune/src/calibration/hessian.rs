//! The Hessian of a layer's output error: its damping, its factor, and the error computed with it.

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use secateur_kernels::factor::inverse_factor_scratch;
use secateur_nn::{LayerName, Weight, ops};

/// The least diagonal element that is not taken for zero. The inverse of a smaller one overflows
/// f32.
const LEAST: f64 = 1e-30;
/// How many times the damping is multiplied by ten if the Hessian is not positive definite.
const ESCALATIONS: i32 = 6;

/// The factor U of an inverse Hessian: upper triangular, with H^-1 = U^T U. 1 / U_jj^2 is the
/// curvature along weight j once the columns before it are fixed. U_ij / U_ii is the correction of
/// column j per unit of error in column i.
#[derive(Clone, Debug)]
pub struct Factor {
    /// d x d, in `f32`, where the Hessian is; zero below the diagonal.
    pub values: Tensor,
    /// Columns whose input is always zero (H_jj is 0 or negligible).
    pub dead: Vec<usize>,
    /// The value that was added to the diagonal, relative to the mean of the diagonal.
    pub damping: f64,
}

impl Factor {
    /// The default damping, relative to the mean of the diagonal. It is that of the reference.
    pub const DAMPING: f64 = 0.01;

    /// Factors `hessian` (d x d, symmetric), the Hessian of the input of `layer`: see
    /// [`inverse_factor`](ops::inverse_factor). H itself is never inverted. If H is not positive
    /// definite, the damping is multiplied by ten until it is.
    ///
    /// # Errors
    /// If the Hessian holds values that are not finite, or is not positive definite with the most
    /// damping.
    pub fn new(hessian: &Tensor, layer: &LayerName) -> Result<Self> {
        let mut diagonals = diagonal(hessian)?;
        let columns = diagonals.len();
        let dead: Vec<usize> =
            (0..columns).filter(|&j| (0.0..LEAST).contains(&diagonals[j])).collect();
        dead.iter().for_each(|&j| diagonals[j] = 1.0);
        let mean = diagonals.iter().sum::<f64>() / columns.max(1) as f64;
        if !mean.is_finite() || mean < 0.0 {
            return Err(Error::layer(layer, "the Hessian of its input is not finite"));
        }
        let factor = damped_factor(hessian, &diagonals, mean, (Self::DAMPING, ESCALATIONS))?;
        let problem =
            "the Hessian of its input is not positive definite, however much it is damped";
        let (values, damping) = factor.ok_or_else(|| Error::layer(layer, problem))?;
        Ok(Self { values, dead, damping })
    }

    /// Returns `weight` (rows x d) with zeros in the dead columns.
    pub(crate) fn without_dead(&self, weight: &Tensor) -> Result<Tensor> {
        without(weight, &self.dead)
    }

    /// The diagonal of U.
    pub(crate) fn diagonal(&self) -> Result<Vec<f64>> {
        diagonal(&self.values)
    }

    /// Bytes that [`Factor::new`] needs for `columns` columns, including the result.
    #[must_use]
    pub fn scratch(columns: usize) -> u64 {
        (columns * columns * size_of::<f32>()) as u64 + inverse_factor_scratch(columns)
    }
}

/// Returns [`ops::inverse_factor`] of a matrix with `diagonals` + damping * `mean` on its diagonal,
/// and the damping: `least`, multiplied by ten until the matrix is positive definite, at most
/// `escalations` times. `None` if that is not enough.
pub(crate) fn damped_factor(
    matrix: &Tensor,
    diagonals: &[f64],
    mean: f64,
    (least, escalations): (f64, i32),
) -> Result<Option<(Tensor, f64)>> {
    for escalation in 0..=escalations {
        let damping = least * 10f64.powi(escalation);
        let damped: Vec<f32> =
            diagonals.iter().map(|diagonal| (diagonal + damping * mean) as f32).collect();
        if let Some(factor) = ops::inverse_factor(matrix, &damped)? {
            return Ok(Some((factor, damping)));
        }
    }
    Ok(None)
}

/// Indices, in a tensor that selects by them.
pub(crate) fn indices(places: &[usize], device: &Device) -> Result<Tensor> {
    let places: Vec<u32> = places.iter().map(|&place| place as u32).collect();
    Ok(Tensor::new(places, device)?)
}

/// Returns `weight` (rows x columns) with zeros in some columns.
pub(crate) fn without(weight: &Tensor, columns: &[usize]) -> Result<Tensor> {
    if columns.is_empty() {
        return Ok(weight.clone());
    }
    let mut kept = vec![1f32; weight.dim(1)?];
    columns.iter().for_each(|&j| kept[j] = 0.0);
    let kept = Tensor::from_slice(&kept, kept.len(), weight.device())?;
    // Without the sign of a zero.
    Ok(weight.broadcast_mul(&kept)?.affine(1.0, 0.0)?)
}

/// The diagonal of a square matrix.
pub(crate) fn diagonal(matrix: &Tensor) -> Result<Vec<f64>> {
    let (rows, columns) = matrix.dims2()?;
    if rows == 0 || columns == 0 {
        return Ok(Vec::new());
    }
    let places: Vec<u32> = (0..columns as u32).map(|j| j * (columns as u32 + 1)).collect();
    let places = Tensor::from_vec(places, columns, matrix.device())?;
    let values = matrix.flatten_all()?.index_select(&places, 0)?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f64::from).collect())
}

/// Returns the relative squared error of a layer's output over the calibration: tr(D H D^T) / tr(W
/// H W^T) with D = `pruned` - `weight` (both rows x d, in `f32`). Returns 0 if the output of the
/// unpruned weight is 0.
///
/// # Errors
/// If the shapes do not fit, or there is no memory.
pub fn hessian_error(weight: &Tensor, pruned: &Tensor, hessian: &Tensor) -> Result<f64> {
    // H is its own transpose.
    let hessian = Weight::from(hessian.clone());
    let energy = |weight: &Tensor| match weight.elem_count() {
        0 => Ok(0.0),
        // tr(W H W^T).
        _ => ops::inner_product(weight, &ops::linear(weight, &hessian, None, None)?),
    };
    let total = energy(weight)?;
    // Rounding can leave less than nothing.
    Ok(if total > 0.0 { energy(&(pruned - weight)?)?.max(0.0) / total } else { 0.0 })
}
