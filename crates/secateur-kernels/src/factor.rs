//! The factor of a Hessian's inverse that the OBS solver needs, by products alone.

use crate::linear::rows_of;
use crate::product::{Panels, Start, Strips, Triangle, product};
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

/// Turns a symmetric positive definite matrix A (`columns` x `columns`, row-major; only its upper triangle is read) into
/// the upper triangular U with A^-1 = U^T U, in place; zeros below the diagonal.
///
/// With A = R R^T, R upper triangular, U = R^-1. By halves: A22 gives U22; R12 = A12 U22^T; A11 - R12 R12^T gives U11; and
/// U12 = -U11 R12 U22. So all the work but that on blocks of 64 columns, which are done in f64, is products in f32, and A is
/// never inverted: near 2/3 n^3 operations, as triangles are multiplied without their zeros.
///
/// # Errors
/// If the matrix is not positive definite; it then holds nothing of use.
pub fn inverse_factor(matrix: &mut [f32], columns: usize) -> Result<(), NotPositiveDefinite> {
    assert_eq!(matrix.len(), columns * columns);
    if columns == 0 {
        return Ok(());
    }
    by_halves(matrix, columns, columns)
}

/// Bytes that [`inverse_factor`] takes beside the matrix: R12 with both signs, U11 R12, and a packed factor, each of half
/// the rows and half the columns.
#[must_use]
pub fn inverse_factor_scratch(columns: usize) -> u64 {
    (4 * columns.div_ceil(2).pow(2) * size_of::<f32>()) as u64
}

/// [`inverse_factor`] of the leading `columns` columns and rows of `matrix`, whose rows are `stride` apart.
fn by_halves(matrix: &mut [f32], columns: usize, stride: usize) -> Result<(), NotPositiveDefinite> {
    if columns <= BASE {
        return base(matrix, columns, stride);
    }
    // The first half in whole blocks, so that the blocks at the bottom are.
    let first = (columns / 2).next_multiple_of(BASE).min(columns - 1);
    let second = columns - first;
    let (top, bottom) = matrix.split_at_mut(first * stride);
    bottom.chunks_mut(stride).for_each(|row| row[..first].fill(0.0));
    by_halves(&mut bottom[first..], second, stride)?;
    let u22 = |row: usize| &bottom[row * stride + first..][..second];

    let mut r12 = vec![0f32; first * second];
    let a12 = |rows: Range<usize>, left: &mut Strips| {
        left.set_rows(rows.len(), second, |i| &top[(rows.start + i) * stride + first..][..second]);
    };
    let u22_transposed = Panels::from_columns(second, second, u22).triangular(Triangle::Lower);
    product(a12, &u22_transposed, Start::Zero, rows_mut(&mut r12, second), |_| ());
    let minus_r12: Vec<f32> = r12.iter().map(|r| -r).collect();

    // The upper triangle, in bands of rows from their diagonal on.
    let band = first.div_ceil(4).next_multiple_of(BASE);
    for (index, rows) in top.chunks_mut(band * stride).enumerate() {
        let from = index * band;
        let a11 = rows.chunks_mut(stride).map(|row| &mut row[from..first]).collect();
        let r12_transposed = Panels::from_columns(second, first - from, |row| &r12[(from + row) * second..][..second]);
        product(rows_of(&minus_r12[from * second..], second), &r12_transposed, Start::Output, a11, |_| ());
    }
    by_halves(top, first, stride)?;

    let u11 = |rows: Range<usize>, left: &mut Strips| {
        left.set_rows(rows.len(), first, |i| &top[(rows.start + i) * stride..][..first]);
        left.begin_at(rows.start);
    };
    let minus_r12 = Panels::from_rows(first, second, |row| &minus_r12[row * second..][..second]);
    let mut product_11 = r12;
    product(u11, &minus_r12, Start::Zero, rows_mut(&mut product_11, second), |_| ());
    let u12 = top.chunks_mut(stride).map(|row| &mut row[first..first + second]).collect();
    let u22 = Panels::from_rows(second, second, u22).triangular(Triangle::Upper);
    product(rows_of(&product_11, second), &u22, Start::Zero, u12, |_| ());
    Ok(())
}

fn rows_mut(matrix: &mut [f32], columns: usize) -> Vec<&mut [f32]> {
    matrix.chunks_exact_mut(columns).collect()
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
    // A_ij = sum over k >= j of R_ik R_jk.
    for j in (0..n).rev() {
        let (above, from_j) = r.split_at_mut(j * n);
        let row = &mut from_j[..n];
        let square = row[j] - row[j + 1..].iter().map(|x| x * x).sum::<f64>();
        // A pivot that rounding in f32 could have made is none; NaN is none either.
        if square.is_nan() || square <= row[j] * f64::from(f32::EPSILON) {
            return Err(NotPositiveDefinite);
        }
        row[j] = square.sqrt();
        for above in above.chunks_exact_mut(n) {
            let dot: f64 = above[j + 1..].iter().zip(&row[j + 1..]).map(|(a, b)| a * b).sum();
            above[j] = (above[j] - dot) / row[j];
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
            row[i + 1..].iter_mut().zip(&below[i + 1..]).for_each(|(u, below)| *u += factor * below);
        }
        row[i] = inverse;
    }
    for (row, u) in matrix.chunks_mut(stride).zip(u.chunks_exact(n)) {
        row.iter_mut().zip(u).for_each(|(value, &u)| *value = u as f32);
    }
    Ok(())
}
