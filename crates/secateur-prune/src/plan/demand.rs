//! What a plan has to know of a method.

use crate::plan::pattern::Pattern;
use crate::plan::portion::Portion;
use secateur_models::Group;
use secateur_nn::LayerName;

/// What changes of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Weights become zero.
    Weights(Pattern),
    /// Heads, neurons, or dimensions of heads go, and layers get smaller.
    Groups(Portion),
}

/// What a plan has to know of the method that it is for.
pub trait Demand {
    /// What changes, and how much of it.
    fn change(&self) -> Change;

    /// The layers whose inputs are watched to remove some of a group.
    fn watched(&self, group: &Group) -> Vec<LayerName>;

    /// Bytes that the method takes for a layer of `rows` x `columns`, beside weights and
    /// statistics.
    fn scratch(&self, rows: usize, columns: usize) -> u64;
}
