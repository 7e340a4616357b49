//! Gram matrices: the symmetric rank-k update behind every Hessian.

use crate::product::{Panels, Start, Strips, multiply};
use crate::simd::{dispatch, map_with};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Rows that are summed up in registers before they are added to the matrix.
const ROWS: usize = 1024;

/// Adds x^T diag(weights) x to the upper triangle (row <= column) of `gram`: `x` rows x `columns`, `gram` columns x
/// columns, both row-major; `weight` gives each row's. What is in the strict lower triangle afterwards is of no use:
/// [`symmetrise`] fills it in the end.
///
/// Half the work of a product: only tiles that touch the upper triangle are computed.
pub fn add_gram(x: &[f32], columns: usize, weight: impl Fn(usize) -> f32 + Sync, gram: &mut [f32]) {
    assert_eq!(gram.len(), columns * columns);
    if columns == 0 {
        return;
    }
    for (chunk, x) in x.chunks(ROWS * columns).enumerate() {
        let rows = x.len() / columns;
        let right = Panels::from_rows(rows, columns, |row| &x[row * columns..][..columns]);
        let width = right.width();
        // The left factor is the same columns, weighted: it is read from the panel of the rows that a task writes.
        let tasks = gram.par_chunks_mut(width * columns).enumerate().with_max_len(1);
        tasks.for_each_init(Strips::default, |left, (index, gram)| {
            let (panel, stride) = right.panel(index);
            let count = gram.len() / columns;
            left.set_columns(count, rows, |p| &panel[p * stride..][..stride], |p| weight(chunk * ROWS + p));
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

/// Adds the sum of squares of every column of `x` (rows x columns, row-major) to `sums`.
pub fn add_column_squares(x: &[f32], weight: impl Fn(usize) -> f32, sums: &mut [f64]) {
    if sums.is_empty() {
        return;
    }
    // Partial sums over 256 rows in f32 keep the loop vectorised; their total is f64.
    const BLOCK: usize = 256;
    let mut partial = vec![0f32; sums.len()];
    for (index, block) in x.chunks(BLOCK * sums.len()).enumerate() {
        partial.fill(0.0);
        for (row, line) in block.chunks_exact(partial.len()).enumerate() {
            dispatch(AddSquares { weight: weight(index * BLOCK + row), x: line, sums: &mut partial });
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
