//! Packages: layers that are calibrated and pruned together.

use crate::plan::demand::{Change, Demand};
use crate::plan::pattern::Pattern;
use secateur_kernels::gram::{add_gram_scratch, numbers_in_bands};
use secateur_models::Group;
use secateur_nn::LayerName;
use serde::Serialize;
use std::collections::BTreeSet;

/// A linear layer whose weight changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedLayer {
    /// Its checkpoint name.
    pub name: LayerName,
    /// Rows of its weight.
    pub rows: usize,
    /// Columns of its weight.
    pub columns: usize,
    /// Rows of its input for one sample: its tokens.
    pub tokens: usize,
    /// The pattern of its zeros, or `None` if columns are removed instead.
    pub pattern: Option<Pattern>,
}

/// A group of heads or neurons to remove some of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedGroup {
    /// The whole group, with its rows and columns.
    pub group: Group,
    /// Number of heads or neurons to remove.
    pub remove: usize,
}

/// Layers that read the same input and share one Hessian.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SharedInput {
    /// The name of the input: the first layer of the family that reads it.
    pub name: LayerName,
    /// The layers. All have the same number of columns.
    pub layers: Vec<PlannedLayer>,
}

impl SharedInput {
    /// Width of the input.
    #[must_use]
    pub fn width(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.columns)
    }

    fn statistics_bytes(&self) -> u64 {
        (numbers_in_bands(self.width()) * size_of::<f32>()) as u64
    }

    /// Bytes of the whole Hessian, of the method's scratch, and of the weights of these layers: a
    /// copy of the old ones, the new ones, these rounded, and for the error a difference and two
    /// products.
    fn solver_bytes(&self, task: &dyn Demand) -> u64 {
        let weights: usize =
            self.layers.iter().map(|layer| layer.rows * layer.columns * size_of::<f32>()).sum();
        let scratch = self.layers.iter().map(|layer| task.scratch(layer.rows, layer.columns)).max();
        let hessian = self.width() * self.width() * size_of::<f32>();
        scratch.unwrap_or(0) + (hessian + 6 * weights) as u64
    }
}

/// Units that are calibrated and pruned together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Package {
    /// The inputs of the units, in execution order.
    pub inputs: Vec<SharedInput>,
    /// The groups to remove parts of. Groups in one list are read by columns of the same layers,
    /// and are pruned together.
    pub coupled: Vec<Vec<PlannedGroup>>,
    /// Inputs that are watched only for the method after this one.
    pub carried: Vec<SharedInput>,
}

impl Package {
    /// Adds an input. If the package has it already (a text that many blocks read), adds the layers
    /// to it.
    pub(super) fn add(&mut self, input: &SharedInput) {
        match self.inputs.iter_mut().find(|own| own.name == input.name) {
            Some(own) => {
                let new = input.layers.iter().filter(|layer| !own.layers.contains(layer));
                let new: Vec<_> = new.cloned().collect();
                own.layers.extend(new);
            }
            None => self.inputs.push(input.clone()),
        }
    }

    /// Returns all layers.
    pub fn layers(&self) -> impl Iterator<Item = &PlannedLayer> {
        self.inputs.iter().flat_map(|input| &input.layers)
    }

    /// Returns the inputs to gather statistics of.
    pub fn watched_inputs(&self) -> impl Iterator<Item = &SharedInput> {
        self.inputs.iter().chain(&self.carried)
    }

    /// Bytes of the Hessians of the package.
    #[must_use]
    pub fn statistics_bytes(&self) -> u64 {
        self.watched_inputs().map(SharedInput::statistics_bytes).sum()
    }

    /// Bytes of the statistics, of the scratch to gather them, and of the solver at its peak.
    #[must_use]
    pub fn bytes(&self, task: &dyn Demand) -> u64 {
        self.statistics_bytes() + self.gram_bytes() + self.solver_bytes(task)
    }

    /// Returns the inputs that are watched to remove parts of those groups, each with its watched
    /// layers. `of` returns the watched layers of a group.
    pub(crate) fn watched(
        &self,
        groups: &[PlannedGroup],
        of: &dyn Fn(&Group) -> Vec<LayerName>,
    ) -> Vec<SharedInput> {
        let watched: BTreeSet<LayerName> =
            groups.iter().flat_map(|planned| of(&planned.group)).collect();
        let watched_of = |input: &SharedInput| SharedInput {
            name: input.name.clone(),
            layers: input
                .layers
                .iter()
                .filter(|layer| watched.contains(&layer.name))
                .cloned()
                .collect(),
        };
        self.inputs.iter().map(watched_of).filter(|input| !input.layers.is_empty()).collect()
    }

    /// Bytes of the scratch to gather the statistics, besides the statistics.
    #[must_use]
    pub fn gram_bytes(&self) -> u64 {
        self.watched_inputs().map(|input| add_gram_scratch(input.width())).max().unwrap_or(0)
    }

    /// Bytes of the largest Hessian.
    #[must_use]
    pub fn largest_statistics_bytes(&self) -> u64 {
        self.watched_inputs().map(SharedInput::statistics_bytes).max().unwrap_or(0)
    }

    /// Bytes of the solver at its peak.
    #[must_use]
    pub fn solver_bytes(&self, task: &dyn Demand) -> u64 {
        match task.change() {
            Change::Weights(_) => {
                self.inputs.iter().map(|input| input.solver_bytes(task)).max().unwrap_or(0)
            }
            Change::Groups(_) => {
                let of_coupled = |coupled: &Vec<PlannedGroup>| {
                    self.watched(coupled, &|group| task.watched(group))
                        .iter()
                        .map(|input| input.solver_bytes(task))
                        .sum()
                };
                self.coupled.iter().map(of_coupled).max().unwrap_or(0)
            }
        }
    }
}

/// Returns the layers whose columns read those heads or neurons.
pub(crate) fn outputs(groups: &[PlannedGroup]) -> BTreeSet<LayerName> {
    groups.iter().flat_map(|planned| planned.group.outputs()).collect()
}
