//! Removes the heads and neurons with the smallest weights.

use crate::error::Result;
use crate::methods::structured::{Layers, Removed, StructuredMethod, remove_lowest};
use crate::plan::PlannedGroup;
use secateur_models::Part;

/// Removes the heads or neurons with the least sum of |w| over their rows and columns, without
/// correcting the weights that are left.
#[derive(Clone, Copy, Debug, Default)]
pub struct L1;

impl StructuredMethod for L1 {
    fn name(&self) -> &'static str {
        "l1"
    }

    fn remove(&self, groups: &[PlannedGroup], layers: &dyn Layers) -> Result<Removed> {
        let score = |planned: &PlannedGroup| {
            let group = &planned.group;
            let mut scores = vec![0f64; group.count()];
            let all: Vec<usize> = (0..group.count()).collect();
            for Part { layer, axis, indices } in group.parts(&all) {
                let sums = layers.weight(&layer)?.sums(axis);
                // The same number of rows or columns of each, one after the other.
                let width = indices.len() / scores.len().max(1);
                for (score, indices) in scores.iter_mut().zip(indices.chunks_exact(width.max(1))) {
                    *score += indices.iter().map(|&index| sums[index]).sum::<f64>();
                }
            }
            Ok(scores)
        };
        let scores = groups.iter().map(score).collect::<Result<Vec<_>>>()?;
        remove_lowest(groups, &scores, layers)
    }

    fn scratch(&self, _: usize, columns: usize) -> u64 {
        (columns * size_of::<f64>()) as u64
    }
}
