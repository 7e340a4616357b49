//! Magnitude pruning, which removes the smallest weights.

use crate::calibration::InputStatistics;
use crate::error::Result;
use crate::methods::method::{LayerWeight, Method, Solved};
use crate::plan::Pattern;
/// Removes the weights with |W| under one threshold per layer, or the smallest of every group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Magnitude;

impl Method for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn prune(&self, layers: &mut [(LayerWeight, Pattern)], _: &InputStatistics) -> Result<Solved> {
        for (layer, pattern) in layers {
            pattern.check(&layer.layer, layer.columns)?;
            for i in pattern.lowest(layer.values.len(), |i| layer.values[i].abs()) {
                layer.values[i as usize] = 0.0;
            }
        }
        Ok(Solved::default())
    }

    fn scratch(&self, rows: usize, columns: usize) -> u64 {
        (rows * columns * size_of::<usize>()) as u64
    }
}
