//! OBS-Diff's solver: Optimal Brain Surgeon, column by column, with a timestep-weighted Hessian
//! (SparseGPT's algorithm, Frantar & Alistarh 2023, under the Hessian of OBS-Diff, eq. 5).

use crate::calibration::{Factor, InputStatistics};
use crate::error::Result;
use crate::methods::method::{Method, Solved, ToPrune};
use crate::methods::obs::Obs;
use crate::plan::Pattern;
use candle_core::Tensor;
use secateur_kernels::obs::{self, Choice};
use secateur_nn::ops;

impl Method for Obs {
    fn name(&self) -> &'static str {
        "obs"
    }

    fn prune(&self, layers: &mut [ToPrune], statistics: &InputStatistics) -> Result<Solved> {
        let Some(first) = layers.first() else { return Ok(Solved::default()) };
        let factor = Factor::new(&statistics.hessian, &first.layer)?;
        for layer in layers {
            layer.pattern.check(&layer.layer, layer.weight.dim(1)?)?;
            layer.weight = solve(&layer.weight, &factor, layer.pattern)?;
        }
        Ok(Solved { damping: factor.damping })
    }

    fn scratch(&self, rows: usize, columns: usize) -> u64 {
        // A share takes more than groups do.
        Factor::scratch(columns) + obs::solve_scratch(rows, columns, Choice::Share(0.5))
    }
}

/// Returns `weight` (rows x d) pruned.
fn solve(weight: &Tensor, factor: &Factor, pattern: Pattern) -> Result<Tensor> {
    let (_, columns) = weight.dims2()?;
    if columns == 0 || pattern.sparsity() == 0.0 {
        return Ok(weight.clone());
    }
    let choice = match pattern {
        Pattern::Unstructured(sparsity) => Choice::Share(sparsity),
        Pattern::SemiStructured { pruned, group } => Choice::Groups { pruned, group },
    };
    Ok(ops::obs_solve(&factor.without_dead(weight)?, &factor.values, choice)?)
}
