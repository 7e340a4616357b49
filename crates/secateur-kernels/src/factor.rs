//! The factor of a Hessian's inverse that the OBS solver needs, by products alone.

use crate::gram::{add_upper, upper_scratch};
use crate::product::{Panels, Start, Strips, Triangle, left_scratch, product, product_in_place};
use crate::simd::MOST_LANES;
use std::fmt;
use std::ops::Range;

/// Columns that are factored in f64, one after another.
const BASE: usize = 64;

/// A matrix is not positive definite, to the precision of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPositiveDefinite;

impl fmt::Display for NotPositiveDefinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the matrix is not positive definite")
    }
}

impl std::error::Error for NotPositiveDefinite {}

/// Turns a symmetric positive definite matrix A (`columns` x `columns`, row-major; only its upper
/// triangle is read) into the upper triangular U with A^-1 = U^T U, in place; zeros below the
/// diagonal.
///
/// With A = R R^T, R upper triangular, U = R^-1. By halves: A22 gives U22; R12 = A12 U22^T; A11 -
/// R12 R12^T gives U11; and U12 = -U11 R12 U22. So all the work but that on blocks of 64 columns,
/// which are done in f64, is products in f32, and A is never inverted: near 2/3 n^3 operations, as
/// triangles are multiplied without their zeros.
///
/// # Errors
/// If the matrix is not positive definite; it then holds nothing of use.
pub fn inverse_factor(matrix: &mut [f32], columns: usize) -> Result<(), NotPositiveDefinite> {
    assert_eq!(matrix.len(), columns * columns);
    if columns == 0 {
        return Ok(());
    }
    by_halves(matrix, columns, columns, &mut Panels::default())
}

/// Bytes that [`inverse_factor`] takes beside the matrix: a packed factor of half the rows and half
/// the columns, and for every thread parts of two left factors, which it keeps for the next
/// product.
#[must_use]
pub fn inverse_factor_scratch(columns: usize) -> u64 {
    let half = (columns / 2).next_multiple_of(BASE).min(columns);
    let right = half * half.next_multiple_of(MOST_LANES);
    let of_thread = left_scratch(half) + upper_scratch(half);
    ((right + rayon::current_num_threads() * of_thread) * size_of::<f32>()) as u64
}

/// [`inverse_factor`] of the leading `columns` columns and rows of `matrix`, whose rows are
/// `stride` apart.
fn by_halves(
    matrix: &mut [f32],
    columns: usize,
    stride: usize,
    packed: &mut Panels,
) -> Result<(), NotPositiveDefinite> {
    if columns <= BASE {
        return base(matrix, columns, stride);
    }
    // The first half in whole blocks, so that the blocks at the bottom are.
    let first = (columns / 2).next_multiple_of(BASE).min(columns - 1);
    let second = columns - first;
    let (top, bottom) = matrix.split_at_mut(first * stride);
    bottom.chunks_mut(stride).for_each(|row| row[..first].fill(0.0));
    by_halves(&mut bottom[first..], second, stride, packed)?;
    let u22 = |row: usize| &bottom[row * stride + first..][..second];

    // R12 in place of A12.
    packed.set_columns_in_parallel(second, second, u22);
    packed.triangular(Triangle::Lower);
    product_in_place(right_half(top, stride, first, second), packed);

    packed.set_columns_in_parallel(second, first, |row| &top[row * stride + first..][..second]);
    let mut a11: Vec<_> = top.chunks_mut(stride).map(|row| &mut row[..first]).collect();
    add_upper(packed, |_| -1.0, &mut a11);
    by_halves(top, first, stride, packed)?;

    // -U11 R12 in place of R12, then U12.
    packed.set_rows_in_parallel(first, second, |row| &top[row * stride + first..][..second]);
    let (u11, r12): (Vec<_>, Vec<_>) =
        top.chunks_mut(stride).map(|row| row.split_at_mut(first)).unzip();
    let u11 = |rows: Range<usize>, left: &mut Strips| {
        left.set_rows(rows.len(), first, |i| &*u11[rows.start + i]);
        left.begin_at(rows.start);
    };
    let r12 = r12.into_iter().map(|row| &mut row[..second]).collect();
    product(u11, packed, Start::Zero, r12, |row| row.iter_mut().for_each(|x| *x = -*x));
    packed.set_rows_in_parallel(second, second, u22);
    packed.triangular(Triangle::Upper);
    product_in_place(right_half(top, stride, first, second), packed);
    Ok(())
}

/// Some columns of every row.
fn right_half(matrix: &mut [f32], stride: usize, first: usize, columns: usize) -> Vec<&mut [f32]> {
    matrix.chunks_mut(stride).map(|row| &mut row[first..first + columns]).collect()
}

/// The same column by column, in f64.
fn base(matrix: &mut [f32], columns: usize, stride: usize) -> Result<(), NotPositiveDefinite> {
    let n = columns;
    let mut r = vec![0f64; n * n];
    for i in 0..n {
        for j in i..n {
            r[i * n + j] = f64::from(matrix[i * stride + j]);
        }
    }
    // A_ij = sum over k >= j of R_ik R_jk: once column j of R is known, what it gives is taken from
    // what is before it.
    for j in (0..n).rev() {
        let square = r[j * n + j];
        // A pivot that rounding in f32 could have made is none; NaN is none either.
        if square.is_nan() || square <= f64::from(matrix[j * stride + j]) * f64::from(f32::EPSILON)
        {
            return Err(NotPositiveDefinite);
        }
        let pivot = square.sqrt();
        r[j * n + j] = pivot;
        let column: Vec<f64> = r.chunks_exact_mut(n).take(j).map(|row| row[j] / pivot).collect();
        for (i, row) in r.chunks_exact_mut(n).enumerate().take(j) {
            row[j] = column[i];
            row[i..j].iter_mut().zip(&column[i..]).for_each(|(a, r)| *a -= column[i] * r);
        }
    }
    // U_ij = -(sum over i < k <= j of R_ik U_kj) / R_ii.
    let mut u = vec![0f64; n * n];
    for i in (0..n).rev() {
        let (upper, lower) = u.split_at_mut((i + 1) * n);
        let row = &mut upper[i * n..];
        let inverse = 1.0 / r[i * n + i];
        for (k, below) in lower.chunks_exact(n).enumerate() {
            let factor = -r[i * n + i + 1 + k] * inverse;
            row[i + 1..]
                .iter_mut()
                .zip(&below[i + 1..])
                .for_each(|(u, below)| *u += factor * below);
        }
        row[i] = inverse;
    }
    for (row, u) in matrix.chunks_mut(stride).zip(u.chunks_exact(n)) {
        row.iter_mut().zip(u).for_each(|(value, &u)| *value = u as f32);
    }
    Ok(())
}
