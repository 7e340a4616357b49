//! The OBS solver's loop over columns: removing the weights of a layer one after another, each paid
//! for by those behind it.

use crate::product::{Panels, Start, Strips, multiply};
use crate::simd::{MOST_LANES, dispatch};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Which weights go.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// Of every block of columns, over all rows, the share (0 to 1) with the least w^2 / U_jj^2
    /// before the block is begun: those up to element int(n * share) of the sorted scores (the
    /// reference's threshold).
    Share(f64),
    /// In every group of `group` successive columns of a row the `pruned` with the least w^2 /
    /// U_jj^2, when the group is reached.
    Groups {
        /// Weights that go.
        pruned: usize,
        /// Weights in a group.
        group: usize,
    },
}

/// Columns solved at a time; what they owe the columns behind them is paid in one product.
const BLOCK: usize = 128;
/// Columns solved at a time within a block.
const STRETCH: usize = 16;
/// Rows that a task solves: a multiple of every vector's width.
const ROWS: usize = 64;

/// Prunes `weight` (rows x d, row-major) in place, with `factor` the upper triangular U (d x d,
/// row-major, H^-1 = U^T U): for a weight that goes, err = w_i / U_ii, and w_j -= err * U_ij for
/// all j > i (SparseGPT's loop, OBS-Diff's solver). Rows are independent but for the threshold of
/// [`Choice::Share`].
pub fn solve(weight: &mut [f32], factor: &[f32], choice: Choice) {
    let columns = factor.len().isqrt();
    if weight.is_empty() || columns == 0 {
        return;
    }
    let block = match choice {
        Choice::Share(_) => BLOCK,
        // Groups do not straddle blocks.
        Choice::Groups { group, .. } => (BLOCK - BLOCK % group).max(group),
    };
    for start in (0..columns).step_by(block) {
        let end = (start + block).min(columns);
        let width = end - start;
        let mut diagonal_block = Vec::with_capacity(width * width);
        for row in factor[start * columns..end * columns].chunks_exact(columns) {
            diagonal_block.extend_from_slice(&row[start..end]);
        }
        let threshold = match choice {
            Choice::Share(share) => threshold(weight, columns, start, &diagonal_block, share),
            Choice::Groups { .. } => 0.0,
        };
        let behind =
            Panels::from_rows(width, columns - end, |row| &factor[(start + row) * columns + end..]);
        weight.par_chunks_mut(ROWS * columns).for_each_init(
            <(Vec<f32>, Strips)>::default,
            |(errors, left), weight| {
                let part = Part { factor: &diagonal_block, choice, threshold, start, columns };
                errors.clear();
                errors.resize(width * ROWS, 0.0);
                dispatch(Eliminate { part, weight: &mut *weight, errors: &mut *errors });
                // W[:, end..] -= E U[start..end, end..]; the errors are kept negated.
                let mut rows: Vec<&mut [f32]> =
                    weight.chunks_exact_mut(columns).map(|row| &mut row[end..]).collect();
                left.set_columns(rows.len(), width, |p| &errors[p * ROWS..][..ROWS], |_| 1.0);
                multiply(left, 0, &behind, 0..behind.count(), Start::Output, &mut rows);
            },
        );
    }
}

/// Bytes that [`solve`] takes for a weight of `rows` x `columns`: a block of the factor packed, the
/// scores of a block, and for every thread the columns and errors of its rows.
#[must_use]
pub fn solve_scratch(rows: usize, columns: usize, choice: Choice) -> u64 {
    let block = match choice {
        Choice::Share(_) => BLOCK,
        Choice::Groups { group, .. } => BLOCK.max(group),
    };
    let width = block.min(columns);
    let scores = if matches!(choice, Choice::Share(_)) { rows * width } else { 0 };
    let threads = rayon::current_num_threads();
    let of_thread = width * (2 * ROWS + 2 * MOST_LANES);
    let behind = width * columns.next_multiple_of(MOST_LANES);
    ((behind + width * width + scores + threads * of_thread) * size_of::<f32>()) as u64
}

/// Element int(n * share) of the sorted scores of a block.
fn threshold(
    weight: &[f32],
    columns: usize,
    start: usize,
    diagonal_block: &[f32],
    share: f64,
) -> f32 {
    let width = diagonal_block.len().isqrt();
    let diagonal: Vec<f32> = diagonal_block.iter().step_by(width + 1).copied().collect();
    let mut scores = vec![0u32; weight.len() / columns * width];
    scores.par_chunks_mut(width).zip(weight.par_chunks(columns)).with_min_len(ROWS).for_each(
        |(scores, weight)| {
            for ((score, w), d) in scores.iter_mut().zip(&weight[start..]).zip(&diagonal) {
                // Numbers that are not negative are in the order of their bits.
                *score = ((w / d) * (w / d)).to_bits();
            }
        },
    );
    let index = ((scores.len() as f64 * share) as usize).min(scores.len() - 1);
    f32::from_bits(*scores.select_nth_unstable(index).1)
}

/// A block of columns.
#[derive(Clone, Copy)]
struct Part<'a> {
    /// The block of U on the diagonal.
    factor: &'a [f32],
    choice: Choice,
    threshold: f32,
    start: usize,
    columns: usize,
}

/// Solves a block for some rows. A vector holds the weights of one column in as many rows as it has
/// numbers: all rows take the same steps, and those whose weight stays have an error of 0.
struct Eliminate<'a> {
    part: Part<'a>,
    /// Rows x columns.
    weight: &'a mut [f32],
    /// Block x [`ROWS`]: -err.
    errors: &'a mut [f32],
}

impl WithSimd for Eliminate<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { part, weight, errors } = self;
        let (columns, width) = (part.columns, part.factor.len().isqrt());
        let lanes = S::F32_LANES;
        let zero = simd.splat_f32s(0.0);
        let mut w = vec![zero; width];
        let mut goes = vec![zero; width];
        let (errors, _) = S::as_mut_simd_f32s(errors);
        let tiles = ROWS / lanes;
        for (tile, weight) in weight.chunks_mut(lanes * columns).enumerate() {
            transpose(simd, weight, part, &mut w);
            if let Choice::Share(_) = part.choice {
                for (i, (goes, &w)) in goes.iter_mut().zip(&w).enumerate() {
                    let ratio = simd.div_f32s(w, simd.splat_f32s(part.factor[i * width + i]));
                    let least = simd.less_than_or_equal_f32s(
                        simd.mul_f32s(ratio, ratio),
                        simd.splat_f32s(part.threshold),
                    );
                    *goes = simd.select_f32s(least, simd.splat_f32s(1.0), zero);
                }
            }
            let stretch = match part.choice {
                Choice::Share(_) => STRETCH,
                Choice::Groups { group, .. } => (STRETCH - STRETCH % group).max(group),
            };
            for first in (0..width).step_by(stretch) {
                let end = (first + stretch).min(width);
                for i in first..end {
                    if let Choice::Groups { pruned, group } = part.choice
                        && i % group == 0
                    {
                        choose(
                            simd,
                            &w[i..i + group],
                            &part.factor[i * width + i..],
                            width,
                            pruned,
                            &mut goes[i..],
                        );
                    }
                    let stays = simd.less_than_or_equal_f32s(goes[i], zero);
                    let error = simd.div_f32s(w[i], simd.splat_f32s(-part.factor[i * width + i]));
                    let error = simd.select_f32s(stays, zero, error);
                    errors[i * tiles + tile] = error;
                    w[i] = simd.select_f32s(stays, w[i], zero);
                    let line = &part.factor[i * width..][..end];
                    for (w, &u) in w[i + 1..end].iter_mut().zip(&line[i + 1..]) {
                        *w = simd.mul_add_e_f32s(error, simd.splat_f32s(u), *w);
                    }
                }
                for (j, w) in w.iter_mut().enumerate().skip(end) {
                    let mut sum = *w;
                    for i in first..end {
                        let u = simd.splat_f32s(part.factor[i * width + j]);
                        sum = simd.mul_add_e_f32s(errors[i * tiles + tile], u, sum);
                    }
                    *w = sum;
                }
            }
            let w: &[f32] = pulp::bytemuck::cast_slice(&w);
            for (lane, row) in weight.chunks_exact_mut(columns).enumerate() {
                for (column, w) in row[part.start..][..width].iter_mut().zip(w.chunks_exact(lanes))
                {
                    *column = w[lane];
                }
            }
        }
    }
}

/// The columns of a block in up to a vector's number of rows: a vector a column.
#[inline(always)]
fn transpose<S: Simd>(_: S, weight: &[f32], part: Part<'_>, w: &mut [S::f32s]) {
    let (columns, width) = (part.columns, w.len());
    let rows = weight.len() / columns;
    let row = |lane: usize| &weight[lane * columns + part.start..][..width];
    crate::transpose::transpose(rows, width, row, pulp::bytemuck::cast_slice_mut(w), S::F32_LANES);
}

/// Marks in `goes` the `pruned` weights of a group with the least scores, the first of equal ones;
/// `factor` begins with the diagonal element of the group's first column.
#[inline(always)]
fn choose<S: Simd>(
    simd: S,
    w: &[S::f32s],
    factor: &[f32],
    width: usize,
    pruned: usize,
    goes: &mut [S::f32s],
) {
    let (zero, one) = (simd.splat_f32s(0.0), simd.splat_f32s(1.0));
    let score = |i: usize| {
        let ratio = simd.div_f32s(w[i], simd.splat_f32s(factor[i * (width + 1)]));
        simd.mul_f32s(ratio, ratio)
    };
    for (a, goes) in goes.iter_mut().enumerate().take(w.len()) {
        // How many go before this one.
        let (mut rank, mine) = (zero, score(a));
        for b in (0..w.len()).filter(|&b| b != a) {
            let other = score(b);
            let before = if b < a {
                simd.less_than_or_equal_f32s(other, mine)
            } else {
                simd.less_than_f32s(other, mine)
            };
            rank = simd.add_f32s(rank, simd.select_f32s(before, one, zero));
        }
        let last = simd.splat_f32s(pruned as f32 - 0.5);
        *goes = simd.select_f32s(simd.less_than_f32s(rank, last), one, zero);
    }
}
