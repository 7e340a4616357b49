//! Wanda, which scores weights by their size times the norm of their input.

use crate::calibration::InputStatistics;
use crate::error::Result;
use crate::methods::method::{Method, Solved, ToPrune};
use rayon::prelude::*;

/// Removes the weights with the lowest |W_ij| * sqrt(sum of x_j^2 / n) of every output row. The
/// weights that are left are not updated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanda;

impl Method for Wanda {
    fn name(&self) -> &'static str {
        "wanda"
    }

    fn prune(&self, layers: &mut [ToPrune], statistics: &InputStatistics) -> Result<Solved> {
        let norms = statistics.norms();
        for layer in layers {
            let pattern = layer.pattern;
            pattern.check(&layer.layer, layer.weight.dim(1)?)?;
            layer.change(|values, columns| {
                values.par_chunks_exact_mut(columns.max(1)).for_each(|row| {
                    for j in pattern.lowest(row.len(), |j| row[j].abs() * norms[j]) {
                        row[j as usize] = 0.0;
                    }
                });
            })?;
        }
        Ok(Solved::default())
    }

    fn scratch(&self, _: usize, columns: usize) -> u64 {
        (columns * size_of::<u64>() * rayon::current_num_threads()) as u64
    }
}
