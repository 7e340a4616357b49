//! Gram matrices: the symmetric rank-k update behind every Hessian.

use crate::product::{Panels, Start, Strips, multiply};
use crate::simd::{dispatch, map_with};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows that are summed up in registers before they are added to the matrix.
const ROWS: usize = 1024;

/// Adds x^T diag(weights) x to the upper triangle (row <= column) of `gram` (columns x columns, row-major), for a matrix x
/// of `rows` x `columns` given by its rows. What is in the strict lower triangle afterwards is of no use: [`symmetrise`]
/// fills it in the end.
///
/// Half the work of a product: only tiles that touch the upper triangle are computed.
pub fn add_gram<'a>(
    rows: usize,
    columns: usize,
    row: impl Fn(usize) -> &'a [f32] + Sync,
    weight: impl Fn(usize) -> f32 + Sync,
    gram: &mut [f32],
) {
    assert_eq!(gram.len(), columns * columns);
    if columns == 0 {
        return;
    }
    for first in (0..rows).step_by(ROWS) {
        let rows = ROWS.min(rows - first);
        let right = Panels::from_rows(rows, columns, |index| row(first + index));
        let width = right.width();
        // The left factor is the same columns, weighted: it is read from the panel of the rows that a task writes.
        let tasks = gram.par_chunks_mut(width * columns).enumerate().with_max_len(1);
        tasks.for_each_init(Strips::default, |left, (index, gram)| {
            let (panel, stride) = right.panel(index);
            let count = gram.len() / columns;
            left.set_columns(count, rows, |p| &panel[p * stride..][..stride], |p| weight(first + p));
            let mut output: Vec<&mut [f32]> =
                gram.chunks_exact_mut(columns).map(|row| &mut row[index * width..]).collect();
            multiply(left, &right, index..right.count(), Start::Output, &mut output);
        });
    }
}

/// Copies the upper triangle of a row-major square matrix onto the lower one.
pub fn symmetrise(gram: &mut [f32], columns: usize) {
    for row in 1..columns {
        for column in 0..row {
            gram[row * columns + column] = gram[column * columns + row];
        }
    }
}

/// Adds the weighted sum of squares of every column of a matrix, given by its rows, to `sums`.
pub fn add_column_squares<'a>(
    rows: usize,
    row: impl Fn(usize) -> &'a [f32],
    weight: impl Fn(usize) -> f32,
    sums: &mut [f64],
) {
    // Partial sums over some rows in f32 are fast; their total is f64.
    const BLOCK: usize = 256;
    let mut partial = vec![0f32; sums.len()];
    for first in (0..rows).step_by(BLOCK) {
        partial.fill(0.0);
        for index in first..(first + BLOCK).min(rows) {
            dispatch(AddSquares { weight: weight(index), x: &row(index)[..partial.len()], sums: &mut partial });
        }
        for (sum, &p) in sums.iter_mut().zip(&partial) {
            *sum += f64::from(p);
        }
    }
}

struct AddSquares<'a> {
    weight: f32,
    x: &'a [f32],
    sums: &'a mut [f32],
}

impl WithSimd for AddSquares<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let weight = self.weight;
        map_with(
            simd,
            self.x,
            self.sums,
            #[inline(always)]
            |x, sum| (x * weight).mul_add(x, sum),
        );
    }
}
