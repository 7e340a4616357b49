//! Magnitude pruning: the smallest weights go.

use crate::error::{Error, Result};
use crate::method::{LayerWeight, Method, Solved};
use crate::pattern::Pattern;
use crate::statistics::InputStatistics;

/// |W| under one threshold a layer, or the least of every group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Magnitude;

impl Method for Magnitude {
    fn name(&self) -> &'static str {
        "magnitude"
    }

    fn prune(&self, layers: &mut [(LayerWeight, Pattern)], _: &InputStatistics) -> Result<Solved> {
        for (layer, pattern) in layers {
            match *pattern {
                Pattern::Unstructured(sparsity) => prune_lowest(&mut layer.values, sparsity, |_, w| w.abs()),
                Pattern::SemiStructured { pruned, group } => {
                    if let Some(problem) = pattern.obstacle(layer.columns) {
                        return Err(Error::layer(&layer.layer, problem));
                    }
                    let share = pruned as f64 / group as f64;
                    layer.values.chunks_exact_mut(group).for_each(|w| prune_lowest(w, share, |_, w| w.abs()));
                }
            }
        }
        Ok(Solved::default())
    }

    fn scratch(&self, rows: usize, columns: usize) -> u64 {
        (rows * columns * size_of::<usize>()) as u64
    }
}

/// Sets the lowest `int(n * share)` of n weights to zero, by `score` of index and weight.
pub(crate) fn prune_lowest(weights: &mut [f32], share: f64, score: impl Fn(usize, f32) -> f32) {
    let count = (weights.len() as f64 * share + 1e-9) as usize;
    if count == 0 {
        return;
    }
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    let key = |i: &u32| score(*i as usize, weights[*i as usize]);
    order.select_nth_unstable_by(count - 1, |a, b| key(a).total_cmp(&key(b)).then(a.cmp(b)));
    for &i in &order[..count] {
        weights[i as usize] = 0.0;
    }
}
