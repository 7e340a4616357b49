//! Sums and counts over all numbers of a tensor.

use super::with_values;
use candle_core::{DType, Device, Result, Tensor, bail};

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

/// The sum of x^2 over each column of `x` (rows x columns), in `f32`, on the CPU in `f64`.
///
/// # Errors
/// If they cannot be read.
pub fn column_squares(x: &Tensor) -> Result<Vec<f64>> {
    let (_, columns) = x.dims2()?;
    let mut sums = vec![0f64; columns];
    match x.device() {
        _ if x.elem_count() == 0 => {}
        Device::Cpu => with_values(x, |x| {
            for row in x.chunks_exact(columns) {
                sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x).powi(2));
            }
        })?,
        _ => with_values(&x.detach().sqr()?.sum(0)?, |squares| {
            sums.iter_mut().zip(squares).for_each(|(sum, &square)| *sum = square.into());
        })?,
    }
    Ok(sums)
}
