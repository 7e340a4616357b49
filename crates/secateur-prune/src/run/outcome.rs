//! The result of pruning a model.

use crate::calibration::PackedStatistics;
use crate::methods::Turn;
use secateur_models::{Edits, Pipeline};
use secateur_nn::LayerName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The result for a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerOutcome {
    /// Its checkpoint name.
    pub name: LayerName,
    /// Rows of its weight.
    pub rows: usize,
    /// Columns of its weight.
    pub columns: usize,
    /// Number of zeros in its new weight.
    pub zeros: usize,
    /// Relative squared error of its output over the calibration, see
    /// [`hessian_error`](crate::hessian_error).
    pub error: f64,
    /// Relative damping of its Hessian; 0 if the method uses none.
    pub damping: f64,
    /// Number of its package, from 0.
    pub package: usize,
}

/// The result for a group of heads, neurons or dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupOutcome {
    /// The module's name.
    pub name: LayerName,
    /// `heads`, `neurons`, `query-key dimensions` or `value-output dimensions`.
    pub kind: String,
    /// How many the group had.
    pub count: usize,
    /// The removed ones, ascending.
    pub removed: Vec<usize>,
    /// Relative squared error over the calibration of the product that they are a part of, if the
    /// method computes it. Otherwise the errors of the layers that read them contain it.
    pub error: Option<f64>,
    /// Relative squared error of the attention that lost dimensions, after the softmax and the
    /// output projection, see [`ModuleErrors`](crate::ModuleErrors).
    pub module_error: Option<f64>,
}

/// The result of pruning.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The changes: new weights, rounded to the checkpoint's type, and removed parts.
    pub edits: Edits,
    /// The layers with new weights from the solver, in execution order.
    pub layers: Vec<LayerOutcome>,
    /// The groups that lost heads, neurons or dimensions.
    pub groups: Vec<GroupOutcome>,
    /// The statistics of the model before pruning, if it was calibrated in one package. Otherwise
    /// empty.
    pub statistics: Statistics,
    /// Columns of inputs that were given a new basis.
    pub turns: Vec<Turn>,
}

/// Statistics by the name of the input.
pub type Statistics = BTreeMap<LayerName, PackedStatistics>;

impl Outcome {
    /// Creates the outcome of an unpruned `pipeline`.
    pub(super) fn of(pipeline: &Pipeline) -> Self {
        Self {
            edits: Edits { removals: pipeline.removals().clone(), ..Edits::default() },
            ..Self::default()
        }
    }

    /// The sum of the relative squared errors of its layers and groups.
    pub(super) fn error(&self) -> f64 {
        let of_layers = self.layers.iter().map(|layer| layer.error);
        of_layers.chain(self.groups.iter().filter_map(|group| group.error)).sum()
    }

    /// Adds the outcome of the next package.
    pub(super) fn extend(&mut self, next: Self) {
        self.edits.weights.extend(next.edits.weights);
        self.edits.removals = next.edits.removals;
        self.layers.extend(next.layers);
        self.groups.extend(next.groups);
        self.turns.extend(next.turns);
    }
}
