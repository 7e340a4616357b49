//! The properties of a method that a plan depends on.

use crate::plan::pattern::Pattern;
use crate::plan::portion::Portion;
use secateur_models::Group;
use secateur_nn::LayerName;

/// The change to a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Weights are set to zero.
    Weights(Pattern),
    /// Heads, neurons, or dimensions of heads are removed, and layers get smaller.
    Groups(Portion),
}

/// The properties of a method that a plan depends on.
pub trait Demand {
    /// The kind of change, and its amount.
    fn change(&self) -> Change;

    /// The layers whose inputs are watched to remove parts of a group.
    fn watched(&self, group: &Group) -> Vec<LayerName>;

    /// Bytes that the method needs besides weights and statistics, for a layer of `rows` x
    /// `columns`.
    fn scratch(&self, rows: usize, columns: usize) -> u64;
}
