//! The parts of Optimal Brain Surgeon.

#[cfg(feature = "cuda")]
use super::cuda;
use super::{cpu, no_kernel, with_values};
use candle_core::{DType, Device, Result, Tensor, bail};
use secateur_kernels::obs::Choice;

/// Returns the upper triangular U with A^-1 = U^T U, zero below the diagonal, for the symmetric
/// `matrix` (n x n, `f32`) with another `diagonal`: see
/// [`secateur_kernels::factor::inverse_factor`]. `None` if A is not positive definite, to the
/// precision of `f32`.
///
/// # Errors
/// If the shapes do not fit each other, or there is no memory.
pub fn inverse_factor(matrix: &Tensor, diagonal: &[f32]) -> Result<Option<Tensor>> {
    let columns = diagonal.len();
    if matrix.dims() != [columns, columns] {
        bail!("inverse factor: {columns} numbers are no diagonal of {:?}", matrix.dims())
    }
    match matrix.device() {
        Device::Cpu => cpu::inverse_factor(matrix, diagonal),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::inverse_factor(matrix, diagonal),
        device => no_kernel("inverse factor", device),
    }
}

/// Removes weights of `weight` (rows x columns) with `factor` (columns x columns), both `f32`, and
/// pays for them by those behind them: see [`secateur_kernels::obs::solve`].
///
/// # Errors
/// If the shapes do not fit each other, or there is no memory.
pub fn obs_solve(weight: &Tensor, factor: &Tensor, choice: Choice) -> Result<Tensor> {
    let (_, columns) = weight.dims2()?;
    if factor.dims() != [columns, columns] {
        bail!("OBS: a factor of {:?} does not fit {columns} columns", factor.dims())
    }
    match weight.device() {
        Device::Cpu => cpu::obs_solve(weight, factor, choice),
        #[cfg(feature = "cuda")]
        device @ Device::Cuda(_) => match cuda::obs_solve(weight, factor, choice)? {
            Some(solved) => Ok(solved),
            None => {
                let [weight, factor] = [weight, factor].map(|x| x.to_device(&Device::Cpu));
                cpu::obs_solve(&weight?, &factor?, choice)?.to_device(device)
            }
        },
        device => no_kernel("OBS", device),
    }
}

/// Whether all numbers of `x` are finite.
///
/// # Errors
/// If they cannot be read.
pub fn is_finite(x: &Tensor) -> Result<bool> {
    // x * 0 is 0 for every finite x and NaN otherwise.
    let sum = x.detach().flatten_all()?.affine(0.0, 0.0)?.sum_all()?;
    Ok(sum.to_dtype(DType::F32)?.to_scalar::<f32>()? == 0.0)
}

/// The number of zeros in `x`.
///
/// # Errors
/// If they cannot be counted.
pub fn zeros(x: &Tensor) -> Result<usize> {
    let count = |x: &[f32]| x.iter().filter(|value| **value == 0.0).count();
    match x.device() {
        Device::Cpu => with_values(x, count),
        _ if x.elem_count() == 0 => Ok(0),
        // Of rows on the device, which `f32` counts exactly.
        _ => {
            let last = x.rank().saturating_sub(1);
            let rows = x.eq(0.0)?.to_dtype(DType::F32)?.sum(last)?;
            with_values(&rows, |rows| rows.iter().map(|&count| count as usize).sum())
        }
    }
}

/// The sum of x * y over all numbers of two tensors of one shape, in `f32`, on the CPU in `f64`.
///
/// # Errors
/// If the shapes differ.
pub fn inner_product(x: &Tensor, y: &Tensor) -> Result<f64> {
    if x.shape() != y.shape() {
        bail!("inner product: {:?} and {:?}", x.dims(), y.dims())
    }
    let sum =
        |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
    match x.device() {
        Device::Cpu => with_values(x, |x| with_values(y, |y| sum(x, y)))?,
        _ if x.elem_count() == 0 => Ok(0.0),
        // Rows on the device, and their sums here.
        _ => {
            let last = x.rank().saturating_sub(1);
            let rows = (x.detach() * y.detach())?.sum(last)?;
            with_values(&rows, |rows| rows.iter().copied().map(f64::from).sum())
        }
    }
}
