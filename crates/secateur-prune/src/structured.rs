//! Removing whole heads and neurons: the methods' interface, and the plain baseline.

use crate::error::Result;
use crate::method::LayerWeight;
use crate::plan::PlannedGroup;
use crate::statistics::InputStatistics;
use secateur_models::{Axis, Part};
use secateur_nn::LayerName;

/// A layer of which columns go, with the statistics of its input.
pub struct Output<'a> {
    /// Its weight, with all columns; those that go become zero.
    pub weight: LayerWeight,
    /// Of the input of all columns.
    pub statistics: &'a InputStatistics,
}

/// Reads the weight of a layer.
pub type Weights<'a> = dyn Fn(&LayerName) -> Result<LayerWeight> + 'a;

/// What became of heads or neurons that one method chose among.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Removed {
    /// For each group, those that go, ascending.
    pub positions: Vec<Vec<usize>>,
    /// What was added to the Hessians' diagonals, relative to their means; 0 where nothing was.
    pub damping: f64,
}

/// A way to choose heads and neurons, and to make up for them.
pub trait StructuredMethod: Sync {
    /// The name on the command line.
    fn name(&self) -> &'static str;

    /// Chooses which of `groups` go, and removes their columns from `outputs`: all layers that read them, in place. `weights`
    /// has the layers that feed them, too.
    ///
    /// # Errors
    /// If the statistics cannot be used.
    fn remove(&self, groups: &[PlannedGroup], outputs: &mut [Output<'_>], weights: &Weights<'_>) -> Result<Removed>;

    /// Bytes that [`StructuredMethod::remove`] takes for an output of `rows` x `columns`, beside weights and statistics.
    fn scratch(&self, rows: usize, columns: usize) -> u64;
}

/// The sum of |w| over all rows and columns of a head or neuron; the least go, and nothing makes up for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct L1;

impl StructuredMethod for L1 {
    fn name(&self) -> &'static str {
        "l1"
    }

    fn remove(&self, groups: &[PlannedGroup], outputs: &mut [Output<'_>], weights: &Weights<'_>) -> Result<Removed> {
        let score = |planned: &PlannedGroup| {
            let group = &planned.group;
            let mut scores = vec![0f64; group.count()];
            let all: Vec<usize> = (0..group.count()).collect();
            for Part { layer, axis, indices } in group.parts(&all) {
                let sums = weights(&layer)?.sums(axis);
                // The same number of rows or columns of each, one after the other.
                let width = indices.len() / scores.len().max(1);
                for (score, indices) in scores.iter_mut().zip(indices.chunks_exact(width.max(1))) {
                    *score += indices.iter().map(|&index| sums[index]).sum::<f64>();
                }
            }
            Ok(scores)
        };
        let scores = groups.iter().map(score).collect::<Result<Vec<_>>>()?;
        Ok(remove_lowest(groups, &scores, outputs))
    }

    fn scratch(&self, _: usize, columns: usize) -> u64 {
        (columns * size_of::<f64>()) as u64
    }
}

/// Removes of each group the heads or neurons with the lowest scores, the first of equal ones.
pub(crate) fn remove_lowest(groups: &[PlannedGroup], scores: &[Vec<f64>], outputs: &mut [Output<'_>]) -> Removed {
    let lowest = |(planned, scores): (&PlannedGroup, &Vec<f64>)| {
        let mut positions = lowest(scores, planned.remove);
        positions.sort_unstable();
        for part in planned.group.parts(&positions) {
            clear(&part, outputs);
        }
        positions
    };
    Removed { positions: groups.iter().zip(scores).map(lowest).collect(), damping: 0.0 }
}

/// The places of the `count` lowest scores, the lowest first, of equal ones the first.
pub(crate) fn lowest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order.truncate(count);
    order
}

/// Zeros in the columns of a part, where it is one of an output.
fn clear(part: &Part, outputs: &mut [Output<'_>]) {
    let output = outputs.iter_mut().find(|output| part.axis == Axis::Columns && output.weight.layer == part.layer);
    let Some(Output { weight, .. }) = output else { return };
    for row in weight.values.chunks_exact_mut(weight.columns.max(1)) {
        part.indices.iter().for_each(|&column| row[column] = 0.0);
    }
}

impl LayerWeight {
    /// The sum of |w| over each row or column.
    fn sums(&self, axis: Axis) -> Vec<f64> {
        let mut sums = vec![0f64; [self.rows, self.columns][axis as usize]];
        for (i, row) in self.values.chunks_exact(self.columns.max(1)).enumerate() {
            for (j, w) in row.iter().enumerate() {
                sums[[i, j][axis as usize]] += f64::from(w.abs());
            }
        }
        sums
    }
}
