//! OBS-Diff's solver: Optimal Brain Surgeon, column by column, with a timestep-weighted Hessian
//! (SparseGPT's algorithm, Frantar & Alistarh 2023, under the Hessian of OBS-Diff, eq. 5).

use crate::calibration::{Factor, InputStatistics};
use crate::error::Result;
use crate::methods::method::{LayerWeight, Method, Solved};
use crate::methods::obs::Obs;
use crate::plan::Pattern;
use secateur_kernels::obs::{self, Choice};

impl Method for Obs {
    fn name(&self) -> &'static str {
        "obs"
    }

    fn prune(
        &self,
        layers: &mut [(LayerWeight, Pattern)],
        statistics: &InputStatistics,
    ) -> Result<Solved> {
        let Some((first, _)) = layers.first() else { return Ok(Solved::default()) };
        let factor = Factor::new(&statistics.hessian, &first.layer)?;
        for (layer, pattern) in layers {
            pattern.check(&layer.layer, layer.columns)?;
            solve(&mut layer.values, &factor, *pattern);
        }
        Ok(Solved { damping: factor.damping })
    }

    fn scratch(&self, rows: usize, columns: usize) -> u64 {
        // A share takes more than groups do.
        Factor::scratch(columns) + obs::solve_scratch(rows, columns, Choice::Share(0.5))
    }
}

/// Prunes `weight` (rows x d, row-major) in place.
fn solve(weight: &mut [f32], factor: &Factor, pattern: Pattern) {
    let columns = factor.values.len().isqrt();
    if columns == 0 || pattern.sparsity() == 0.0 {
        return;
    }
    for row in weight.chunks_exact_mut(columns) {
        factor.dead.iter().for_each(|&j| row[j] = 0.0);
    }
    let choice = match pattern {
        Pattern::Unstructured(sparsity) => Choice::Share(sparsity),
        Pattern::SemiStructured { pruned, group } => Choice::Groups { pruned, group },
    };
    obs::solve(weight, &factor.values, choice);
}
