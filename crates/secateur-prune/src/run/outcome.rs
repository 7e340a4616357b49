//! What became of a model.

use crate::calibration::InputStatistics;
use crate::methods::Turn;
use secateur_models::{Edits, Pipeline};
use secateur_nn::LayerName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerOutcome {
    /// Its checkpoint name.
    pub name: LayerName,
    /// Rows of its weight.
    pub rows: usize,
    /// Columns of its weight.
    pub columns: usize,
    /// Zeros in its weight now.
    pub zeros: usize,
    /// Relative squared error of its output over the calibration, see
    /// [`hessian_error`](crate::hessian_error).
    pub error: f64,
    /// Relative damping of its Hessian; 0 where the method uses none.
    pub damping: f64,
    /// Number of its package, from 0.
    pub package: usize,
}

/// What became of heads, neurons or dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupOutcome {
    /// The module's name.
    pub name: LayerName,
    /// `heads`, `neurons`, `query-key dimensions` or `value-output dimensions`.
    pub kind: String,
    /// How many there were.
    pub count: usize,
    /// Those that went, ascending.
    pub removed: Vec<usize>,
    /// Relative squared error of the product that they are a part of, over the calibration, where
    /// the method tells it; else it is in the errors of the layers that read them.
    pub error: Option<f64>,
    /// Relative squared error of the attention that dimensions were removed of, after the softmax
    /// and the output projection, see [`ModuleErrors`](crate::ModuleErrors).
    pub module_error: Option<f64>,
}

/// What pruning gives.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What changed: new weights, rounded to the checkpoint's type, and what is gone.
    pub edits: Edits,
    /// The layers whose weights were solved for, in execution order.
    pub layers: Vec<LayerOutcome>,
    /// The heads and neurons, some of which went.
    pub groups: Vec<GroupOutcome>,
    /// The statistics of the model as it was: where it was calibrated in one package, and else
    /// none.
    pub statistics: Statistics,
    /// Columns of inputs that are in a new basis.
    pub turns: Vec<Turn>,
}

/// Statistics by the name of the input.
pub type Statistics = BTreeMap<LayerName, InputStatistics>;

impl Outcome {
    /// Of nothing done to `pipeline` yet.
    pub(super) fn of(pipeline: &Pipeline) -> Self {
        Self {
            edits: Edits { removals: pipeline.removals().clone(), ..Edits::default() },
            ..Self::default()
        }
    }

    /// Takes in what was done next.
    pub(super) fn extend(&mut self, next: Self) {
        self.edits.weights.extend(next.edits.weights);
        self.edits.removals = next.edits.removals;
        self.layers.extend(next.layers);
        self.groups.extend(next.groups);
        self.turns.extend(next.turns);
    }
}
