//! DSnoT, Dynamic Sparse no Training (Zhang et al., ICLR 2024, arXiv 2310.08915): a mask of pruned
//! weights that is changed by swaps.

use crate::calibration::{Factor, InputStatistics};
use crate::error::Result;
use crate::methods::method::{LayerWeight, Method, Solved};
use crate::plan::Pattern;
use rayon::prelude::*;

/// Swaps that a row has at most.
const ROUNDS: usize = 50;

/// The error at which a row is left as it is.
const THRESHOLD: f64 = 0.1;

/// Swaps pruned weights of a row for others, so that its expected output comes back to what it was;
/// no update of what is left. The variants are the masks to start from.
///
/// M_j = W_ij E\[x_j\] is what weight j adds to the expected output of row i, and the sum of M over
/// the pruned weights is the row's error. While that is above 0.1 in size, and 50 times at most:
///
/// - of the pruned weights whose M has the error's sign, the one of the largest |M_j| / Var\[x_j\]
///   grows back;
/// - in its place goes, of the kept weights whose M has the other sign, the one of the least |W_ij|
///   ||x_j|| (Wanda's measure). For N:M it is the one of its group that the start values least,
///   whatever its M, and the row ends before its error would change sign.
///
/// The two criteria, the threshold and the rounds are the paper's. From its code (`lib/prune.py` of
/// zyxxmu/DSnoT) come the rule for N:M, both starts, that no weight moves twice, and that a swap is
/// made even where it overshoots: the error of a row may grow.
///
/// The code is not followed where it
/// - takes for E\[x_j\] the sum over a sample's tokens, of which 0.1 is so little that most rows
///   have many more rounds. From Wanda's mask, that leaves a larger error in the layers of the
///   bundled models than the mean, which the paper has;
/// - averages the variances of batches, each around its own mean: here the variance is that of all
///   rows together;
/// - goes on where no candidates are left, with weights that are kept already or of the other sign,
///   and takes 0/0 for the best where no input comes: here such a weight is no candidate, and the
///   row is done;
/// - leaves feed-forward layers as they start (its default).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dsnot {
    /// The mask of [`Wanda`](crate::Wanda).
    Wanda,
    /// The lowest W_ij^2 / U_jj^2 of every output row, U the [`Factor`] of the timestep-weighted
    /// Hessian.
    Hessian,
}

impl Method for Dsnot {
    fn name(&self) -> &'static str {
        match self {
            Self::Wanda => "dsnot",
            Self::Hessian => "dsnot-hessian",
        }
    }

    fn prune(
        &self,
        layers: &mut [(LayerWeight, Pattern)],
        statistics: &InputStatistics,
    ) -> Result<Solved> {
        let Some((first, _)) = layers.first() else { return Ok(Solved::default()) };
        let norms = statistics.norms();
        let (start, damping) = match self {
            Self::Wanda => (norms.clone(), 0.0),
            Self::Hessian => {
                let factor = Factor::new(&statistics.hessian, &first.layer)?;
                let diagonal = factor.values.iter().step_by(statistics.width() + 1);
                let mut start: Vec<f32> = diagonal.map(|u| 1.0 / u).collect();
                factor.dead.iter().for_each(|&j| start[j] = 0.0);
                (start, factor.damping)
            }
        };
        let columns =
            Columns { start, norms, means: statistics.means(), variances: statistics.variances() };
        for (layer, pattern) in layers {
            pattern.check(&layer.layer, layer.columns)?;
            let rows = layer.values.par_chunks_exact_mut(layer.columns.max(1));
            rows.for_each(|row| columns.prune(row, *pattern));
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

/// What is known of the columns of a layer.
struct Columns {
    /// The starting mask goes by |W| times this.
    start: Vec<f32>,
    /// Wanda goes by |W| times this.
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

    /// Moves the marks of `pruned`; how many there are, in the row or in each group, stays.
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

/// The places of the lowest scores, in order: as many as a row has rounds.
fn lowest(mut scored: Vec<(f64, usize)>) -> Vec<(f64, usize)> {
    let order = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
    if scored.len() > ROUNDS {
        scored.select_nth_unstable_by(ROUNDS - 1, order);
        scored.truncate(ROUNDS);
    }
    scored.sort_unstable_by(order);
    scored
}
