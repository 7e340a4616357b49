//! Pruning of weights in memory.

use candle_core::{Device, Tensor};
use secateur_nn::to_device;
use secateur_prune::{InputStatistics, LayerWeight, Method, Pattern, Result, Solved, ToPrune};

pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn weight(layer: &LayerWeight) -> Tensor {
    Tensor::from_slice(&layer.values, (layer.rows, layer.columns), &Device::Cpu).unwrap()
}

/// Prunes layers of one input, all to one pattern, where its statistics are.
pub(crate) fn prune_layers(
    method: &dyn Method,
    layers: &mut [LayerWeight],
    statistics: &InputStatistics,
    pattern: Pattern,
) -> Result<Solved> {
    let to_prune = |own: &LayerWeight| {
        let weight = to_device(&weight(own), statistics.hessian.device()).unwrap();
        ToPrune { layer: own.layer.clone(), weight, pattern }
    };
    let mut to_prune: Vec<_> = layers.iter().map(to_prune).collect();
    let solved = method.prune(&mut to_prune, statistics)?;
    layers.iter_mut().zip(to_prune).for_each(|(own, pruned)| own.values = numbers(&pruned.weight));
    Ok(solved)
}
