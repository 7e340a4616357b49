//! Gram matrices: the symmetric rank-k update behind every Hessian.

use crate::product::{Panels, Start, Strips, VECTORS, multiply, with_scratch};
use crate::simd::{MOST_LANES, dispatch, map_with};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Rows that are packed at a time.
const ROWS: usize = 1024;

/// Panels of columns that make the rows which a task writes: this many times less often is the
/// right factor read.
const PANELS: usize = 2;

thread_local! {
    static RIGHT: Cell<Panels> = Cell::default();
    static LEFT: Cell<Vec<Strips>> = Cell::default();
}

/// Adds x^T diag(weights) x to the upper triangle (row <= column) of `gram` (columns x columns,
/// row-major), for a matrix x of `rows` x `columns` given by its rows. What is in the strict lower
/// triangle afterwards is of no use: [`symmetrise`] fills it in the end.
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
    let mut gram: Vec<_> = gram.chunks_exact_mut(columns.max(1)).collect();
    add_to_rows(rows, columns, row, weight, &mut gram);
}

/// As [`add_gram`], to a matrix that is held by its [`bands`] alone.
pub fn add_gram_to_bands<'a>(
    rows: usize,
    columns: usize,
    row: impl Fn(usize) -> &'a [f32] + Sync,
    weight: impl Fn(usize) -> f32 + Sync,
    gram: &mut [f32],
) {
    assert_eq!(gram.len(), numbers_in_bands(columns));
    let mut rest = gram;
    let mut of_rows = Vec::with_capacity(columns);
    for band in bands(columns) {
        let width = columns - band.start;
        let (own, others) = rest.split_at_mut(band.len() * width);
        of_rows.extend(own.chunks_exact_mut(width));
        rest = others;
    }
    add_to_rows(rows, columns, row, weight, &mut of_rows);
}

/// `gram`: of each row of the matrix its end, from the diagonal's panel on at least.
fn add_to_rows<'a>(
    rows: usize,
    columns: usize,
    row: impl Fn(usize) -> &'a [f32] + Sync,
    weight: impl Fn(usize) -> f32 + Sync,
    gram: &mut [&mut [f32]],
) {
    if columns == 0 {
        return;
    }
    with_scratch(&RIGHT, |right| {
        for first in (0..rows).step_by(ROWS) {
            let rows = ROWS.min(rows - first);
            right.set_rows_in_parallel(rows, columns, |index| row(first + index));
            add_upper(right, |index| weight(first + index), gram);
        }
    });
}

/// The bands of rows in which the upper triangle of a square matrix is held: of each band the
/// columns from its first row on, row by row, and one band after the other. Of a wide matrix that
/// is little more than half. What is below the diagonal is of no use.
pub fn bands(columns: usize) -> impl Iterator<Item = Range<usize>> {
    let rows = rows_of_a_band(columns);
    (0..columns).step_by(rows).map(move |first| first..(first + rows).min(columns))
}

/// Rows of a band: an eighth of all, and so many that a GPU has enough to do with one; whole panels
/// of every width.
#[must_use]
pub fn rows_of_a_band(columns: usize) -> usize {
    const ENOUGH: usize = 9 << 18;
    const PANELS_OF_ALL_WIDTHS: usize = 128 * VECTORS;
    (columns / 8).max(ENOUGH / columns.max(1)).next_multiple_of(PANELS_OF_ALL_WIDTHS)
}

/// How many numbers all [`bands`] have.
#[must_use]
pub fn numbers_in_bands(columns: usize) -> usize {
    bands(columns).map(|band| band.len() * (columns - band.start)).sum()
}

/// The whole symmetric matrix whose [`bands`] these are.
#[must_use]
pub fn whole(gram: &[f32], columns: usize) -> Vec<f32> {
    assert_eq!(gram.len(), numbers_in_bands(columns));
    let mut whole = vec![0f32; columns * columns];
    let mut rest = gram;
    for band in bands(columns) {
        let (own, others) = rest.split_at(band.len() * (columns - band.start));
        for (row, numbers) in band.clone().zip(own.chunks_exact(columns - band.start)) {
            whole[row * columns + band.start..(row + 1) * columns].copy_from_slice(numbers);
        }
        rest = others;
    }
    symmetrise(&mut whole, columns);
    whole
}

/// Bytes that [`add_gram`] takes beside the matrix, and that its threads keep for the next call:
/// packed rows, and for every thread the part of the left factor that it works on.
#[must_use]
pub fn add_gram_scratch(columns: usize) -> u64 {
    let right = ROWS * columns.next_multiple_of(MOST_LANES);
    ((right + rayon::current_num_threads() * upper_scratch(ROWS)) * size_of::<f32>()) as u64
}

/// Elements that every thread takes in [`add_upper`] for an x of that many rows.
pub(crate) fn upper_scratch(rows: usize) -> usize {
    PANELS * VECTORS * MOST_LANES * rows
}

/// Adds x^T diag(weights) x to the upper triangle of a matrix, given by its rows, for a packed x of
/// as many columns. Rows may lack columns before their panel.
pub(crate) fn add_upper(
    x: &Panels,
    weight: impl Fn(usize) -> f32 + Sync,
    matrix: &mut [&mut [f32]],
) {
    debug_assert_eq!(matrix.len(), x.columns());
    let width = x.width();
    // The first rows are the longest: of a narrow matrix, smaller tasks let the threads end
    // together.
    let panels = if x.count() < 4 * PANELS * rayon::current_num_threads() { 1 } else { PANELS };
    matrix.par_chunks_mut(panels * width).enumerate().with_max_len(1).for_each(|(task, rows)| {
        let first = task * panels;
        with_scratch(&LEFT, |left| {
            left.resize_with(panels, Strips::default);
            let mut blocks: Vec<_> = rows.chunks_mut(width).zip(left).collect();
            // The left factor is the same columns, weighted.
            for (index, (rows, left)) in (first..).zip(&mut blocks) {
                let (panel, stride) = x.panel(index);
                left.set_columns(rows.len(), x.depth(), |p| &panel[p * stride..], &weight);
            }
            for index in first..x.count() {
                for (rows, left) in blocks.iter_mut().take(index + 1 - first) {
                    // Every row ends at the last column.
                    let behind = x.columns() - index * width;
                    let mut output: Vec<&mut [f32]> =
                        rows.iter_mut().map(|row| row.split_at_mut(row.len() - behind).1).collect();
                    multiply(left, 0, x, index..index + 1, Start::Output, &mut output);
                }
            }
        });
    });
}

/// Copies the upper triangle of a row-major square matrix onto the lower one.
pub fn symmetrise(gram: &mut [f32], columns: usize) {
    for row in 1..columns {
        for column in 0..row {
            gram[row * columns + column] = gram[column * columns + row];
        }
    }
}

/// Adds the weighted sum of every column of a matrix, given by its rows, to `sums`, and that of its
/// squares to `squares`.
pub fn add_column_moments<'a>(
    rows: usize,
    row: impl Fn(usize) -> &'a [f32] + Sync,
    weight: impl Fn(usize) -> f32 + Sync,
    sums: &mut [f64],
    squares: &mut [f64],
) {
    assert_eq!(sums.len(), squares.len());
    // Partial sums over some rows in f32 are fast; their total is f64.
    const BLOCK: usize = 256;
    let columns = sums.len();
    let block = |block: usize| {
        let (mut sums, mut squares) = (vec![0f32; columns], vec![0f32; columns]);
        for index in block * BLOCK..((block + 1) * BLOCK).min(rows) {
            let (weight, x) = (weight(index), &row(index)[..columns]);
            dispatch(AddMoments { weight, x, sums: &mut sums, squares: &mut squares });
        }
        (sums, squares)
    };
    let blocks: Vec<_> = (0..rows.div_ceil(BLOCK)).into_par_iter().map(block).collect();
    for (part, part_of_squares) in blocks {
        for (sum, part) in sums.iter_mut().zip(part).chain(squares.iter_mut().zip(part_of_squares))
        {
            *sum += f64::from(part);
        }
    }
}

struct AddMoments<'a> {
    weight: f32,
    x: &'a [f32],
    sums: &'a mut [f32],
    squares: &'a mut [f32],
}

impl WithSimd for AddMoments<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let weight = self.weight;
        map_with!(simd, self.x, self.sums, |x, sum| x * weight + sum);
        map_with!(simd, self.x, self.squares, |x, sum| (x * weight).mul_add(x, sum));
    }
}
