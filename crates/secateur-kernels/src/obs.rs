//! The inner loops of the OBS solver: removing weights of a block of columns one after another.

use crate::simd::dispatch;
use rayon::prelude::*;

/// Which weights of a block go.
#[derive(Clone, Copy, Debug)]
pub enum Choice {
    /// Those with w^2 / U_jj^2 (before any update of this block) up to a threshold.
    Threshold(f32),
    /// In every group of `group` successive columns the `pruned` with the least w^2 / U_jj^2, when the group is
    /// reached.
    Groups {
        /// Weights that go.
        pruned: usize,
        /// Weights in a group.
        group: usize,
    },
}

/// Scores w^2 / U_jj^2 of a block (rows x `width`, row-major), into `scores`.
pub fn scores(weights: &[f32], diagonal: &[f32], scores: &mut [f32]) {
    crate::simd::for_rows(
        weights,
        scores,
        diagonal.len(),
        #[inline(always)]
        |_, w, s| {
            for ((s, &w), &d) in s.iter_mut().zip(w).zip(diagonal) {
                *s = (w / d) * (w / d);
            }
        },
    );
}

/// Removes weights of a block, column by column, and updates the columns of the block behind each (OBS-Diff's and
/// SparseGPT's inner loop): err = w / U_ii, then w_j -= err * U_ij for j > i. `weights` and `errors` are rows x width,
/// `factor` the width x width diagonal block of U; all row-major.
pub fn eliminate(weights: &mut [f32], errors: &mut [f32], factor: &[f32], width: usize, choice: Choice) {
    const ROWS: usize = 16;
    weights.par_chunks_mut(ROWS * width).zip(errors.par_chunks_mut(ROWS * width)).for_each(|(weights, errors)| {
        dispatch(
            #[inline(always)]
            || {
                let mut pruned = vec![false; width];
                for (w, e) in weights.chunks_exact_mut(width).zip(errors.chunks_exact_mut(width)) {
                    row(w, e, factor, &mut pruned, choice);
                }
            },
        );
    });
}

/// Columns updated together.
const LANE: usize = 16;

#[inline(always)]
fn row(w: &mut [f32], errors: &mut [f32], factor: &[f32], pruned: &mut [bool], choice: Choice) {
    let width = w.len();
    let score = |w: f32, i: usize| {
        let x = w / factor[i * width + i];
        x * x
    };
    if let Choice::Threshold(threshold) = choice {
        for (i, p) in pruned.iter_mut().enumerate() {
            *p = score(w[i], i) <= threshold;
        }
    }
    for i in 0..width {
        if let Choice::Groups { pruned: count, group } = choice
            && i % group == 0
        {
            let mark = &mut pruned[i..i + group];
            mark.fill(false);
            for _ in 0..count {
                let left = (0..group).filter(|&j| !mark[j]);
                let least = left.min_by(|&a, &b| score(w[i + a], i + a).total_cmp(&score(w[i + b], i + b)));
                if let Some(least) = least {
                    mark[least] = true;
                }
            }
        }
        if !pruned[i] {
            errors[i] = 0.0;
            continue;
        }
        let error = w[i] / factor[i * width + i];
        errors[i] = error;
        // From the lane that holds column i on, so that lanes are whole wherever i stands: U is zero left of its
        // diagonal, and the columns before i keep their values.
        let start = i / LANE * LANE;
        let line = &factor[i * width + start..(i + 1) * width];
        let (mut lanes, mut lines) = (w[start..].chunks_exact_mut(LANE), line.chunks_exact(LANE));
        for (w, u) in (&mut lanes).zip(&mut lines) {
            for (w, &u) in w.iter_mut().zip(u) {
                *w -= error * u;
            }
        }
        for (w, &u) in lanes.into_remainder().iter_mut().zip(lines.remainder()) {
            *w -= error * u;
        }
        w[i] = 0.0;
    }
}
