//! The parts of Optimal Brain Surgeon.

#[cfg(feature = "cuda")]
use super::cuda;
use super::{cpu, no_kernel};
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

/// Returns `matrix` + factor x^T x, for a symmetric matrix (n x n) and rows `x` (rows x n), both
/// `f32`.
///
/// # Errors
/// If the shapes do not fit each other, or there is no memory.
pub fn add_gram(matrix: &Tensor, x: &Tensor, factor: f32) -> Result<Tensor> {
    let (rows, columns) = x.dims2()?;
    if matrix.dims() != [columns, columns] {
        bail!("Gram matrix: rows of {columns} numbers do not fit {:?}", matrix.dims())
    }
    match matrix.device() {
        _ if rows == 0 || columns == 0 => Ok(matrix.clone()),
        Device::Cpu => cpu::add_gram(matrix, x, factor),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::add_gram(matrix, x, factor),
        device => no_kernel("Gram matrix", device),
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
    if let Choice::Groups { pruned, group } = choice
        && (group == 0 || pruned > group || !columns.is_multiple_of(group))
    {
        bail!("OBS: {pruned} of every {group} do not fit {columns} columns")
    }
    if [weight, factor].iter().any(|x| x.dtype() != DType::F32) {
        bail!("OBS: weight and factor are {:?} and {:?}", weight.dtype(), factor.dtype())
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
