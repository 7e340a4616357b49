//! Gram matrices: the symmetric rank-k update behind every Hessian.

use crate::linear::parallelism;
use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, MatMut, MatRef};

/// Adds `alpha` * x^T x to the upper triangle (row <= column) of `gram`: `x` rows x `columns`, `gram` columns x
/// columns, both row-major. The strict lower triangle is not touched: [`symmetrise`] fills it in the end.
pub fn add_gram(x: &[f32], columns: usize, alpha: f32, gram: &mut [f32]) {
    assert_eq!(gram.len(), columns * columns);
    if columns == 0 || x.is_empty() {
        return;
    }
    let x = MatRef::from_row_major_slice(x, x.len() / columns, columns);
    // faer works on the lower triangle of the column-major view, which is the upper one of ours.
    let gram = MatMut::from_column_major_slice_mut(gram, columns, columns);
    matmul(
        gram,
        BlockStructure::TriangularLower,
        Accum::Add,
        x.transpose(),
        BlockStructure::Rectangular,
        x,
        BlockStructure::Rectangular,
        alpha,
        parallelism(),
    );
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
pub fn add_column_squares(x: &[f32], sums: &mut [f64]) {
    if sums.is_empty() {
        return;
    }
    // Partial sums over 256 rows in f32 keep the loop vectorised; their total is f64.
    let mut partial = vec![0f32; sums.len()];
    for block in x.chunks(256 * sums.len()) {
        partial.fill(0.0);
        crate::simd::dispatch(
            #[inline(always)]
            || {
                for row in block.chunks_exact(partial.len()) {
                    for (p, &x) in partial.iter_mut().zip(row) {
                        *p += x * x;
                    }
                }
            },
        );
        for (sum, &p) in sums.iter_mut().zip(&partial) {
            *sum += f64::from(p);
        }
    }
}
