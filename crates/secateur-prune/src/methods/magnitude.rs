//! Magnitude pruning, which removes the smallest weights.

use crate::calibration::InputStatistics;
use crate::error::Result;
use crate::methods::method::{Method, Solved, ToPrune};

/// Removes the weights with |W| under one threshold per layer, or the smallest of every group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Magnitude;

impl Method for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn prune(&self, layers: &mut [ToPrune], _: &InputStatistics) -> Result<Solved> {
        for layer in layers {
            let pattern = layer.pattern;
            pattern.check(&layer.layer, layer.weight.dim(1)?)?;
            layer.change(|values, _| {
                for i in pattern.lowest(values.len(), |i| values[i].abs()) {
                    values[i as usize] = 0.0;
                }
            })?;
        }
        Ok(Solved::default())
    }

    fn scratch(&self, rows: usize, columns: usize) -> u64 {
        (rows * columns * size_of::<usize>()) as u64
    }
}
