//! Removing whole heads and neurons, or dimensions of heads: the interface of the methods.

use crate::calibration::{Calibration, InputStatistics};
use crate::error::Result;
use crate::methods::method::LayerWeight;
use crate::methods::turn::Turn;
use crate::plan::{Plan, PlannedGroup};
use secateur_models::{Axis, Group, Observer, Part, Pipeline};
use secateur_nn::LayerName;
use std::collections::BTreeMap;

/// Access of a method to the layers of a model.
pub trait Layers {
    /// The weight of a layer.
    ///
    /// # Errors
    /// If there is no such layer.
    fn weight(&self, layer: &LayerName) -> Result<LayerWeight>;

    /// The bias of a layer, or `None` if it has none.
    ///
    /// # Errors
    /// If it cannot be read.
    fn bias(&self, layer: &LayerName) -> Result<Option<Vec<f32>>>;

    /// Statistics of the input of a layer that the method watches.
    ///
    /// # Errors
    /// If there are none.
    fn statistics(&self, layer: &LayerName) -> Result<&InputStatistics>;
}

/// The result of removing parts of groups.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Removed {
    /// For each group, the removed positions, ascending.
    pub positions: Vec<Vec<usize>>,
    /// New weights with all rows and columns. Removed ones are zero.
    pub weights: BTreeMap<LayerName, LayerWeight>,
    /// New biases, with all entries.
    pub biases: BTreeMap<LayerName, Vec<f32>>,
    /// For each group, the relative squared error over the calibration of the product that it is a
    /// part of, or `None` if the errors of the layers that read the group contain it.
    pub errors: Vec<Option<f64>>,
    /// The value that was added to the Hessians' diagonals, relative to their means; 0 if none was
    /// added.
    pub damping: f64,
    /// Columns of inputs that were given a new basis.
    pub turns: Vec<Turn>,
}

/// A method that chooses heads, neurons or dimensions to remove, and corrects the weights that are
/// left.
pub trait StructuredMethod: Sync {
    /// The name on the command line, with the options that select a variant.
    fn name(&self) -> &'static str;

    /// The layers whose inputs the method needs statistics of, to remove parts of a group: the
    /// layers that read it, unless the method says otherwise.
    fn watched(&self, group: &Group) -> Vec<LayerName> {
        group.outputs().collect()
    }

    /// Measures on the model what the statistics do not contain, before parts of `plan`'s groups
    /// are removed.
    ///
    /// # Errors
    /// If the model fails, or the observer interrupts.
    fn prepare(
        &self,
        _pipeline: &Pipeline,
        _plan: &Plan,
        _calibration: &Calibration,
        _observer: &dyn Observer,
    ) -> Result<()> {
        Ok(())
    }

    /// Returns the most pictures that [`StructuredMethod::prepare`] draws, and the most calls of
    /// the model for one sample that it takes gradients of.
    fn preparation(&self, _calibration: &Calibration) -> (usize, usize) {
        (0, 0)
    }

    /// Chooses the parts of `groups` to remove, and corrects the weights that are left.
    ///
    /// # Errors
    /// If the statistics cannot be used.
    fn remove(&self, groups: &[PlannedGroup], layers: &dyn Layers) -> Result<Removed>;

    /// The error of removing each of `counts`, which rise, from a group alone: that of the group,
    /// or of the layers that read it. `None` if there is no faster way than
    /// [`StructuredMethod::remove`].
    ///
    /// # Errors
    /// If the statistics cannot be used.
    fn errors(
        &self,
        _group: &Group,
        _counts: &[usize],
        _layers: &dyn Layers,
    ) -> Result<Option<Vec<f64>>> {
        Ok(None)
    }

    /// Bytes that [`StructuredMethod::remove`] needs besides weights and statistics, for a watched
    /// layer of `rows` x `columns`.
    fn scratch(&self, rows: usize, columns: usize) -> u64;
}

/// Removes from each group the heads or neurons with the lowest scores; of equal scores, the first
/// ones.
pub(crate) fn remove_lowest(
    groups: &[PlannedGroup],
    scores: &[Vec<f64>],
    layers: &dyn Layers,
) -> Result<Removed> {
    let mut removed = Removed { errors: vec![None; groups.len()], ..Removed::default() };
    for (planned, scores) in groups.iter().zip(scores) {
        let mut positions = lowest(scores, planned.remove);
        positions.sort_unstable();
        for part in planned.group.parts(&positions).iter().filter(|part| part.axis == Axis::Columns)
        {
            let weight = match removed.weights.remove(&part.layer) {
                Some(weight) => weight,
                None => layers.weight(&part.layer)?,
            };
            removed.weights.insert(part.layer.clone(), weight.cleared(part));
        }
        removed.positions.push(positions);
    }
    Ok(removed)
}

/// Returns the positions of the `count` lowest scores, the lowest first; of equal scores, the first
/// ones.
pub(crate) fn lowest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    order.truncate(count);
    order
}

impl LayerWeight {
    /// Returns the weight with zeros in the columns of a part.
    fn cleared(mut self, part: &Part) -> Self {
        for row in self.values.chunks_exact_mut(self.columns.max(1)) {
            part.indices.iter().for_each(|&column| row[column] = 0.0);
        }
        self
    }

    /// Returns the sum of |w| over each row or column.
    pub(super) fn sums(&self, axis: Axis) -> Vec<f64> {
        let mut sums = vec![0f64; [self.rows, self.columns][axis as usize]];
        for (i, row) in self.values.chunks_exact(self.columns.max(1)).enumerate() {
            for (j, w) in row.iter().enumerate() {
                sums[[i, j][axis as usize]] += f64::from(w.abs());
            }
        }
        sums
    }
}
