//! The changes that a method makes to a denoiser, as plain data: new weights, and the heads,
//! dimensions of heads and neurons that it removes.

use crate::structure::group::{Group, Part};
use candle_core::{Device, Result as TensorResult, Tensor};
use secateur_nn::{LayerName, Weight, to_device};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// New weights, and all that is removed.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    /// New weights, by parameter name.
    pub weights: BTreeMap<String, Weight>,
    /// All heads, dimensions and neurons that the model lacks afterwards, including those that it
    /// lacked before.
    pub removals: Removals,
}

/// What is removed from one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Number of heads, dimensions or neurons by the configuration.
    pub of: usize,
    /// Indices of the removed ones, ascending.
    pub removed: Vec<usize>,
}

/// What is removed from a model, by the name of the group ([`Group::name`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removals(BTreeMap<LayerName, Removal>);

impl Removals {
    /// Whether nothing is removed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is removed from each group that lost something.
    pub fn iter(&self) -> impl Iterator<Item = (&LayerName, &Removal)> {
        self.0.iter()
    }

    /// Removes the heads, dimensions or neurons at `positions` of a group that has `count` left.
    pub fn remove(&mut self, group: &LayerName, count: usize, positions: &[usize]) {
        if positions.is_empty() {
            return;
        }
        let removal = self
            .0
            .entry(group.clone())
            .or_insert_with(|| Removal { of: count, removed: Vec::new() });
        let left = kept(removal.of, &removal.removed);
        removal.removed.extend(positions.iter().filter_map(|&position| left.get(position)));
        removal.removed.sort_unstable();
    }

    /// Number of heads, dimensions or neurons left in each group that lost some.
    #[must_use]
    pub fn sizes(&self) -> BTreeMap<LayerName, usize> {
        self.0
            .iter()
            .map(|(name, removal)| (name.clone(), removal.of - removal.removed.len()))
            .collect()
    }

    /// Checks the removals against the `groups` of the model's configuration, and describes a
    /// problem.
    #[must_use]
    pub fn problem(&self, groups: impl Iterator<Item = Group>) -> Option<String> {
        let groups: BTreeMap<LayerName, Group> =
            groups.map(|group| (group.name().clone(), group)).collect();
        self.0.iter().find_map(|(name, Removal { of, removed })| {
            let Some(group) = groups.get(name) else {
                return Some(format!(
                    "{name} is no group of heads, dimensions or neurons of this model"
                ));
            };
            let (count, kind) = (group.count(), group.kind());
            if *of != count {
                return Some(format!(
                    "{name} is said to have had {of} {kind}, and by config.json it has {count}"
                ));
            }
            let ascending = removed.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || removed.last().is_some_and(|last| last >= of) || removed.len() >= *of {
                return Some(format!(
                    "the removed {kind} of {name} are not ascending numbers of some of {of}"
                ));
            }
            None
        })
    }

    /// The removed rows and columns of each layer. `groups` are all groups of the model's
    /// configuration.
    #[must_use]
    pub fn cuts(&self, groups: impl Iterator<Item = Group>) -> Cuts {
        let gone = groups.filter_map(|group| Some(group.parts(&self.0.get(group.name())?.removed)));
        Cuts::new(gone.flatten())
    }
}

/// The numbers of 0..`count` that are not in `removed`.
fn kept(count: usize, removed: &[usize]) -> Vec<usize> {
    let removed: BTreeSet<usize> = removed.iter().copied().collect();
    (0..count).filter(|index| !removed.contains(index)).collect()
}

/// Rows and columns of layers' weights that are cut out, or put back as zeros.
#[derive(Clone, Debug, Default)]
pub struct Cuts(BTreeMap<LayerName, [BTreeSet<usize>; 2]>);

impl Cuts {
    /// Collects the rows and columns of `parts`.
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        let mut cuts = Self::default();
        for Part { layer, axis, indices } in parts {
            cuts.0.entry(layer).or_default()[axis as usize].extend(indices);
        }
        cuts
    }

    /// Names of the parameters that change, including those of biases, which a layer may lack.
    pub fn parameters(&self) -> impl Iterator<Item = String> {
        self.0.iter().flat_map(|(layer, [rows, _])| {
            let bias = (!rows.is_empty()).then(|| layer.bias());
            std::iter::once(layer.weight()).chain(bias)
        })
    }

    /// Whether the parameter `name` changes.
    pub(crate) fn changes(&self, parameter: &str) -> bool {
        self.of(parameter).is_some_and(|cuts| cuts.iter().any(|cuts| !cuts.is_empty()))
    }

    /// The shape of the parameter `name` after the cut rows and columns are put back into one of
    /// `shape`. `None` if it does not change.
    pub(crate) fn whole(&self, parameter: &str, shape: &[usize]) -> Option<Vec<usize>> {
        let cuts = self.of(parameter).filter(|_| self.changes(parameter))?;
        let cut = |axis: usize| cuts.get(axis).map_or(0, BTreeSet::len);
        Some(shape.iter().enumerate().map(|(axis, size)| size + cut(axis)).collect())
    }

    /// The cut rows and columns of the parameter `name`, if it belongs to one of these layers.
    fn of(&self, parameter: &str) -> Option<&[BTreeSet<usize>]> {
        let (layer, kind) = parameter.rsplit_once('.')?;
        let cuts = self.0.get(layer)?;
        match kind {
            "weight" => Some(cuts),
            "bias" => Some(&cuts[..1]),
            _ => None,
        }
    }

    /// Cuts the rows and columns out of the parameter. A parameter without cuts stays as it is.
    ///
    /// # Errors
    /// If the parameter does not have these rows and columns.
    pub fn take_out(&self, parameter: &str, tensor: &Tensor) -> TensorResult<Tensor> {
        self.select(parameter, tensor, |tensor, axis, cuts| {
            let cuts: Vec<usize> = cuts.iter().copied().collect();
            let left: Vec<u32> =
                kept(tensor.dim(axis)?, &cuts).into_iter().map(|index| index as u32).collect();
            let count = left.len();
            if count == 0 {
                // On a GPU, selecting no row is an error.
                let mut shape = tensor.dims().to_vec();
                shape[axis] = 0;
                let none = Tensor::zeros(shape, tensor.dtype(), &Device::Cpu)?;
                return to_device(&none, tensor.device());
            }
            tensor.index_select(&Tensor::from_vec(left, count, tensor.device())?, axis)
        })
    }

    /// Puts zeros into the parameter, which lacks the cut rows and columns, at their places.
    ///
    /// # Errors
    /// If the places do not fit.
    pub fn put_back(&self, parameter: &str, tensor: &Tensor) -> TensorResult<Tensor> {
        self.select(parameter, tensor, |tensor, axis, cuts| {
            let mut shape = tensor.dims().to_vec();
            let left = shape[axis];
            // One row of zeros behind the others stands for all that are put back.
            shape[axis] = 1;
            let zeros = Tensor::zeros(shape, tensor.dtype(), tensor.device())?;
            let mut next = 0..left as u32;
            let places = (0..left + cuts.len()).map(|place| match cuts.contains(&place) {
                true => left as u32,
                false => next.next().unwrap_or(left as u32),
            });
            let places: Vec<u32> = places.collect();
            let count = places.len();
            let places = Tensor::from_vec(places, count, tensor.device())?;
            Tensor::cat(&[tensor, &zeros], axis)?.index_select(&places, axis)
        })
    }

    fn select(
        &self,
        parameter: &str,
        tensor: &Tensor,
        change: impl Fn(&Tensor, usize, &BTreeSet<usize>) -> TensorResult<Tensor>,
    ) -> TensorResult<Tensor> {
        let cuts = self.of(parameter).unwrap_or_default();
        let mut cuts = cuts.iter().enumerate().filter(|(_, cuts)| !cuts.is_empty());
        cuts.try_fold(tensor.clone(), |tensor, (axis, cuts)| change(&tensor, axis, cuts))
    }
}

#[cfg(test)]
mod tests {
    use super::{Cuts, Removals};
    use crate::structure::{Axis, Part};
    use candle_core::{Device, Tensor};

    #[test]
    fn what_is_removed_twice_is_told_in_the_first_numbering() {
        let mut removals = Removals::default();
        let group = "attn".into();
        removals.remove(&group, 6, &[1, 4]);
        // Left: 0, 2, 3, 5.
        removals.remove(&group, 4, &[1, 3]);
        removals.remove(&"other".into(), 3, &[]);
        let all: Vec<_> = removals.iter().collect();
        assert_eq!(
            (all.len(), all[0].1.of, all[0].1.removed.as_slice()),
            (1, 6, [1, 2, 4, 5].as_slice())
        );
        assert_eq!(removals.sizes()["attn"], 2);
    }

    #[test]
    fn zeros_come_back_where_rows_and_columns_were() {
        let part = |axis, indices: &[usize]| Part {
            layer: "layer".into(),
            axis,
            indices: indices.to_vec(),
        };
        let cuts = Cuts::new([part(Axis::Rows, &[0, 2]), part(Axis::Columns, &[3])]);
        let whole = Tensor::arange(1f32, 13.0, &Device::Cpu).unwrap().reshape((3, 4)).unwrap();
        let less = cuts.take_out("layer.weight", &whole).unwrap();
        assert_eq!(less.to_vec2::<f32>().unwrap(), [[5.0, 6.0, 7.0]]);
        let back = cuts.put_back("layer.weight", &less).unwrap();
        assert_eq!(back.to_vec2::<f32>().unwrap(), [[0.0; 4], [5.0, 6.0, 7.0, 0.0], [0.0; 4]]);
        let all = Cuts::new([part(Axis::Rows, &[0, 1, 2])]);
        let none = all.take_out("layer.weight", &whole).unwrap();
        assert_eq!(none.dims(), [0, 4]);
        assert_eq!(all.put_back("layer.weight", &none).unwrap().dims(), [3, 4]);
        let bias = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        assert_eq!(cuts.take_out("layer.bias", &bias).unwrap().to_vec1::<f32>().unwrap(), [2.0]);
        assert_eq!(
            cuts.take_out("layer.scale", &bias).unwrap().to_vec1::<f32>().unwrap(),
            [1.0, 2.0, 3.0]
        );
        assert_eq!(cuts.parameters().collect::<Vec<_>>(), ["layer.weight", "layer.bias"]);
    }
}
