//! DSnoT, Dynamic Sparse no Training (Zhang et al., ICLR 2024, arXiv 2310.08915), which changes a
//! mask of pruned weights by swaps.

use crate::calibration::{Factor, InputStatistics};
use crate::error::Result;
use crate::methods::method::{Method, Solved, ToPrune};
use crate::plan::Pattern;
use rayon::prelude::*;

/// The most swaps in a row.
const ROUNDS: usize = 50;

/// The size of a row's error at or under which no more swaps are made.
const THRESHOLD: f64 = 0.1;

/// Swaps pruned weights of a row for kept ones, to bring the row's expected output back to that of
/// the unpruned row. The weights that are left are not updated. The variants are the masks to start
/// from.
///
/// M_j = W_ij E\[x_j\] is the contribution of weight j to the expected output of row i, and the sum
/// of M over the pruned weights is the row's error. While the error is above 0.1 in size, and at
/// most 50 times:
///
/// - of the pruned weights whose M has the error's sign, the one with the largest |M_j| /
///   Var\[x_j\] is restored;
/// - instead, of the kept weights whose M has the other sign, the one with the least |W_ij| ||x_j||
///   (Wanda's measure) is pruned. For N:M it is the weight of the same group with the least score
///   in the starting mask, whatever its M, and the row ends before its error would change sign.
///
/// The two criteria, the threshold and the number of rounds are the paper's. Its code
/// (`lib/prune.py` of zyxxmu/DSnoT) gives the rule for N:M and both starting masks. As in the code,
/// no weight is swapped twice, and a swap is made even if it overshoots: the error of a row can
/// grow.
///
/// This implementation differs from the code, which
/// - takes E\[x_j\] to be the sum over a sample's tokens. Relative to that sum the threshold of 0.1
///   is so small that most rows take many more rounds. From Wanda's mask, the sum gives a larger
///   error in the layers of the bundled models than the mean, which the paper uses;
/// - averages the variances of batches, each around its own mean. Here the variance is that of all
///   rows together;
/// - continues without candidates, with weights that are kept already or of the other sign, and
///   takes 0/0 for the best score for columns without input. Here such a weight is no candidate,
///   and the row ends;
/// - does not change the mask of feed-forward layers (its default).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dsnot {
    /// The mask of [`Wanda`](crate::Wanda).
    Wanda,
    /// The lowest W_ij^2 / U_jj^2 of every output row, where U is the [`Factor`] of the
    /// timestep-weighted Hessian.
    Hessian,
}

impl Method for Dsnot {
    fn name(&self) -> &'static str {
        match self {
            Self::Wanda => "dsnot",
            Self::Hessian => "dsnot-hessian",
        }
    }

    fn prune(&self, layers: &mut [ToPrune], statistics: &InputStatistics) -> Result<Solved> {
        let Some(first) = layers.first() else { return Ok(Solved::default()) };
        let norms = statistics.norms();
        let (start, damping) = match self {
            Self::Wanda => (norms.clone(), 0.0),
            Self::Hessian => {
                let factor = Factor::new(&statistics.hessian, &first.layer)?;
                let diagonal = factor.diagonal()?;
                let mut start: Vec<f32> = diagonal.iter().map(|&u| 1.0 / u as f32).collect();
                factor.dead.iter().for_each(|&j| start[j] = 0.0);
                (start, factor.damping)
            }
        };
        let columns =
            Columns { start, norms, means: statistics.means(), variances: statistics.variances() };
        for layer in layers {
            let pattern = layer.pattern;
            pattern.check(&layer.layer, layer.weight.dim(1)?)?;
            layer.change(|values, width| {
                let rows = values.par_chunks_exact_mut(width.max(1));
                rows.for_each(|row| columns.prune(row, pattern));
            })?;
        }
        Ok(Solved { damping })
    }

    fn scratch(&self, _: usize, columns: usize) -> u64 {
        let of_layer = 2 * size_of::<f32>() + 2 * size_of::<f64>();
        // M, a candidate, and two marks.
        let of_row = size_of::<f64>() + size_of::<(f64, usize)>() + 2 * size_of::<bool>();
        let factor = if *self == Self::Hessian { Factor::scratch(columns) } else { 0 };
        factor + (columns * (of_layer + of_row * rayon::current_num_threads())) as u64
    }
}

/// Values per column of a layer.
struct Columns {
    /// Factor of |W| in the scores of the starting mask.
    start: Vec<f32>,
    /// Factor of |W| in Wanda's measure.
    norms: Vec<f32>,
    means: Vec<f64>,
    variances: Vec<f64>,
}

impl Columns {
    fn prune(&self, row: &mut [f32], pattern: Pattern) {
        let mut pruned = vec![false; row.len()];
        for j in pattern.lowest(row.len(), |j| row[j].abs() * self.start[j]) {
            pruned[j as usize] = true;
        }
        self.swap(row, &mut pruned, pattern);
        row.iter_mut().zip(pruned).filter(|(_, pruned)| *pruned).for_each(|(w, _)| *w = 0.0);
    }

    /// Swaps marks in `pruned`. The number of marks in the row, and for N:M in each group, stays
    /// the same.
    fn swap(&self, row: &[f32], pruned: &mut [bool], pattern: Pattern) {
        let m: Vec<f64> =
            row.iter().zip(&self.means).map(|(&w, mean)| f64::from(w) * mean).collect();
        let mut error: f64 =
            m.iter().zip(&*pruned).filter(|(_, pruned)| **pruned).map(|(m, _)| m).sum();
        if error.abs() <= THRESHOLD {
            return;
        }
        let mut kept: Vec<bool> = pruned.iter().map(|pruned| !pruned).collect();
        let best = |among: &[bool], sign: f64, score: &dyn Fn(usize) -> f64| {
            let places = (0..row.len()).filter(|&j| among[j] && m[j] * sign > 0.0);
            lowest(places.map(|j| (score(j), j)).collect()).into_iter()
        };
        let group = match pattern {
            Pattern::Unstructured(_) => None,
            Pattern::SemiStructured { group, .. } => Some(group),
        };
        // For an error below 0, and for one above.
        let mut growing =
            [-1.0, 1.0].map(|sign| best(pruned, sign, &|j| -m[j].abs() / self.variances[j]));
        let mut going = match group {
            None => [1.0, -1.0]
                .map(|sign| best(&kept, sign, &|j| f64::from(row[j].abs() * self.norms[j]))),
            Some(_) => Default::default(),
        };
        for _ in 0..ROUNDS {
            if error.abs() <= THRESHOLD {
                break;
            }
            let side = usize::from(error > 0.0);
            let Some((_, grown)) = growing[side].next() else { break };
            let gone = match group {
                None => going[side].next().map(|(_, j)| j),
                Some(group) => {
                    let score = |j: usize| row[j].abs() * self.start[j];
                    let first = grown - grown % group;
                    (first..first + group)
                        .filter(|&j| kept[j])
                        .min_by(|&a, &b| score(a).total_cmp(&score(b)))
                }
            };
            // Where nothing is left to go, in the row or the group, the weight stays pruned.
            let Some(gone) = gone else { continue };
            let after = error + m[gone] - m[grown];
            if group.is_some() && after * error <= 0.0 {
                break;
            }
            (pruned[grown], pruned[gone], kept[gone]) = (false, true, false);
            error = after;
        }
    }
}

/// Returns the positions of the lowest scores, lowest first: at most as many as a row has rounds.
fn lowest(mut scored: Vec<(f64, usize)>) -> Vec<(f64, usize)> {
    let order = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    if scored.len() > ROUNDS {
        scored.select_nth_unstable_by(ROUNDS - 1, order);
        scored.truncate(ROUNDS);
    }
    scored.sort_unstable_by(order);
    scored
}
