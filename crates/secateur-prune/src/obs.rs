//! OBS-Diff's solver: Optimal Brain Surgeon, column by column, with a timestep-weighted Hessian (SparseGPT's
//! algorithm, Frantar & Alistarh 2023, under the Hessian of OBS-Diff, eq. 5).

use crate::error::{Error, Result};
use crate::hessian::Factor;
use crate::method::{LayerWeight, Method, Solved};
use crate::pattern::Pattern;
use crate::statistics::InputStatistics;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef};
use secateur_kernels::linear::parallelism;
use secateur_kernels::obs::{self, Choice};

/// Removes the weights whose removal hurts least, and lets the others make up for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Obs;

/// Columns solved at a time; what they owe the columns behind them is paid in one product.
const BLOCK: usize = 128;

impl Method for Obs {
    fn name(&self) -> &'static str {
        "obs"
    }

    fn prune(&self, layers: &mut [LayerWeight], statistics: &InputStatistics, pattern: Pattern) -> Result<Solved> {
        let Some(first) = layers.first() else { return Ok(Solved::default()) };
        let factor = Factor::new(&statistics.hessian, &first.layer)?;
        for layer in layers {
            if let Some(problem) = pattern.obstacle(layer.columns) {
                return Err(Error::layer(&layer.layer, problem));
            }
            solve(&mut layer.values, &factor, pattern);
        }
        Ok(Solved { damping: factor.damping })
    }

    fn scratch(&self, rows: usize, columns: usize) -> u64 {
        Factor::scratch(columns) + (3 * rows * BLOCK.min(columns) * size_of::<f32>()) as u64
    }
}

/// Prunes `weight` (rows x d, row-major) in place.
fn solve(weight: &mut [f32], factor: &Factor, pattern: Pattern) {
    let columns = factor.values.len().isqrt();
    if weight.is_empty() || pattern.sparsity() == 0.0 {
        return;
    }
    let rows = weight.len() / columns;
    for row in weight.chunks_exact_mut(columns) {
        factor.dead.iter().for_each(|&j| row[j] = 0.0);
    }
    let block = match pattern {
        Pattern::Unstructured(_) => BLOCK,
        // Groups do not straddle blocks.
        Pattern::SemiStructured { group, .. } => (BLOCK - BLOCK % group).max(group),
    };
    let mut start = 0;
    while start < columns {
        let width = block.min(columns - start);
        let end = start + width;
        let mut part = gather(weight, columns, start, width);
        let mut errors = vec![0f32; rows * width];
        let diagonal_block = gather(&factor.values[start * columns..end * columns], columns, start, width);
        let choice = match pattern {
            Pattern::Unstructured(sparsity) => Choice::Threshold(threshold(&part, &diagonal_block, width, sparsity)),
            Pattern::SemiStructured { pruned, group } => Choice::Groups { pruned, group },
        };
        obs::eliminate(&mut part, &mut errors, &diagonal_block, width, choice);
        for (row, part) in weight.chunks_exact_mut(columns).zip(part.chunks_exact(width)) {
            row[start..end].copy_from_slice(part);
        }
        if end < columns {
            // W[:, end..] -= E U[start..end, end..]
            let weight = MatMut::from_row_major_slice_mut(weight, rows, columns).subcols_mut(end, columns - end);
            let factor = MatRef::from_row_major_slice(&factor.values, columns, columns);
            let factor = factor.submatrix(start, end, width, columns - end);
            let errors = MatRef::from_row_major_slice(&errors, rows, width);
            matmul(weight, Accum::Add, errors, factor, -1.0, parallelism());
        }
        start = end;
    }
}

/// Columns `start..start + width` of a row-major matrix.
fn gather(matrix: &[f32], columns: usize, start: usize, width: usize) -> Vec<f32> {
    let mut part = Vec::with_capacity(matrix.len() / columns * width);
    matrix.chunks_exact(columns).for_each(|row| part.extend_from_slice(&row[start..start + width]));
    part
}

/// The reference's threshold: element `int(n * sparsity)` of the sorted scores of the block; scores up to it go.
fn threshold(part: &[f32], diagonal_block: &[f32], width: usize, sparsity: f64) -> f32 {
    let diagonal: Vec<f32> = diagonal_block.iter().step_by(width + 1).copied().collect();
    let mut scores = vec![0f32; part.len()];
    obs::scores(part, &diagonal, &mut scores);
    let index = ((scores.len() as f64 * sparsity) as usize).min(scores.len() - 1);
    *scores.select_nth_unstable_by(index, f32::total_cmp).1
}
