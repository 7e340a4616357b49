//! Layers without a model.

use secateur_nn::LayerName;
use secateur_prune::{InputStatistics, LayerWeight, Layers, Result};
use std::collections::BTreeMap;

/// Weights, each with statistics of its input, and biases.
pub(crate) struct Given {
    layers: Vec<(LayerWeight, InputStatistics)>,
    pub(crate) biases: BTreeMap<LayerName, Vec<f32>>,
}

impl Given {
    pub(crate) fn new(layers: Vec<(LayerWeight, InputStatistics)>) -> Self {
        Self { layers, biases: BTreeMap::new() }
    }

    fn layer(&self, name: &LayerName) -> &(LayerWeight, InputStatistics) {
        self.layers
            .iter()
            .find(|(weight, _)| weight.layer == *name)
            .unwrap_or_else(|| panic!("{name} was not given"))
    }
}

impl Layers for Given {
    fn weight(&self, layer: &LayerName) -> Result<LayerWeight> {
        Ok(self.layer(layer).0.clone())
    }

    fn bias(&self, layer: &LayerName) -> Result<Option<Vec<f32>>> {
        Ok(self.biases.get(layer).cloned())
    }

    fn statistics(&self, layer: &LayerName) -> Result<&InputStatistics> {
        Ok(&self.layer(layer).1)
    }
}
