//! The plan: which layers are pruned, in which order, and the memory and work that this takes.

mod demand;
mod package;
mod pattern;
mod portion;
mod selection;

use crate::error::{Error, Result};
pub use demand::{Change, Demand};
pub(crate) use package::outputs;
pub use package::{Package, PlannedGroup, PlannedLayer, SharedInput};
pub use pattern::Pattern;
pub use portion::Portion;
use secateur_models::{Block, Group, Layer, Operation, Removals, Role, Structure};
use secateur_nn::LayerName;
pub use selection::Selection;
use serde::Serialize;
use std::collections::HashMap;

/// The number of module packages. Each package is calibrated on the model as pruned in the packages
/// before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packages {
    /// That many packages, or one per unit if there are fewer units.
    Count(usize),
    /// As few packages as possible, so that the statistics and the solver of one package take at
    /// most that many bytes.
    Memory(u64),
}

/// The layers and groups to prune, in packages.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The packages, in execution order.
    pub packages: Vec<Package>,
}

impl Plan {
    /// Splits the parts of the chosen layers that the task changes into packages with nearly equal
    /// numbers of units.
    ///
    /// # Errors
    /// If nothing is chosen, a layer cannot have the pattern, or even one unit does not fit into
    /// the memory.
    pub fn new(
        structure: &Structure,
        selection: &Selection,
        packages: Packages,
        task: &dyn Demand,
    ) -> Result<Self> {
        let units = match task.change() {
            Change::Weights(pattern) => weight_units(structure, selection, Some(pattern)),
            Change::Groups(portion) => structured_units(structure, selection, &portion, task),
        };
        if units.is_empty() {
            return Err(Error::Request(nothing_chosen(structure, task.change())));
        }
        for layer in units.iter().flat_map(Package::layers) {
            if let Some(pattern) = layer.pattern {
                pattern.check(&layer.name, layer.columns)?;
            }
        }
        match packages {
            Packages::Count(0) => {
                Err(Error::Request("the number of packages must be at least 1".into()))
            }
            Packages::Count(count) => Ok(Self::cut(&units, count)),
            Packages::Memory(budget) => {
                let plans = (1..=units.len()).map(|count| Self::cut(&units, count));
                let mut least = u64::MAX;
                for plan in plans {
                    let needed = plan.bytes(task);
                    if needed <= budget {
                        return Ok(plan);
                    }
                    least = least.min(needed);
                }
                let mebibytes = |bytes: u64| bytes.div_ceil(1 << 20);
                Err(Error::Request(format!(
                    "`memory {} MiB` does not hold the statistics and solver of one unit: at least \
                     {} MiB are needed",
                    mebibytes(budget),
                    mebibytes(least)
                )))
            }
        }
    }

    fn cut(units: &[Package], count: usize) -> Self {
        let count = count.min(units.len());
        let bound = |package: usize| package * units.len() / count;
        let join = |package: usize| {
            let mut joined = Package::default();
            for unit in &units[bound(package)..bound(package + 1)] {
                unit.inputs.iter().for_each(|input| joined.add(input));
                joined.coupled.extend(unit.coupled.iter().cloned());
            }
            joined
        };
        Self { packages: (0..count).map(join).collect() }
    }

    /// Adds the inputs of all attentions and feed-forwards to the watched inputs, for
    /// [`Source::carried`](crate::Source::carried).
    ///
    /// # Errors
    /// If the plan has more than one package.
    pub fn carry(&mut self, structure: &Structure) -> Result<()> {
        let [package] = self.packages.as_mut_slice() else {
            let problem = "statistics can be carried over to the new model only with one package, \
                as later packages see a model that was changed: with `packages 1` or more `memory` \
                there is one";
            return Err(Error::Request(problem.into()));
        };
        for input in weight_units(structure, &Selection::default(), None)
            .iter()
            .flat_map(|unit| &unit.inputs)
        {
            if package.watched_inputs().all(|watched| watched.name != input.name) {
                package.carried.push(input.clone());
            }
        }
        Ok(())
    }

    /// Returns all layers in execution order.
    pub fn layers(&self) -> impl Iterator<Item = &PlannedLayer> {
        self.packages.iter().flat_map(Package::layers)
    }

    /// Returns the bytes of the largest package.
    #[must_use]
    pub fn bytes(&self, task: &dyn Demand) -> u64 {
        self.packages.iter().map(|package| package.bytes(task)).max().unwrap_or(0)
    }

    /// Returns all groups of heads and neurons, in execution order.
    pub fn groups(&self) -> impl Iterator<Item = &PlannedGroup> {
        self.packages.iter().flat_map(|package| package.coupled.iter().flatten())
    }

    /// Returns all parts that a model lacks once the groups are pruned, if it lacks `before` now.
    /// Which parts go is not known yet, so the first ones stand for them.
    #[must_use]
    pub fn removals(&self, before: &Removals) -> Removals {
        let mut removals = before.clone();
        for PlannedGroup { group, remove } in self.groups() {
            removals.remove(group.name(), group.count(), &(0..*remove).collect::<Vec<_>>());
        }
        removals
    }

    /// Returns the multiply-accumulates of all Hessians for one sample at one step, if layers have
    /// as many tokens as in `structure`. Products with a symmetric result count half.
    #[must_use]
    pub fn hessian_macs(&self, structure: &Structure) -> u64 {
        let inputs = self.packages.iter().flat_map(Package::watched_inputs);
        let tokens = |layer: &Layer| match layer.operation {
            Operation::Linear { rows, .. } => rows,
            _ => 0,
        };
        let tokens: HashMap<&LayerName, usize> =
            structure.layers().map(|layer| (&layer.name, tokens(layer))).collect();
        let of = |layer: &PlannedLayer| {
            tokens
                .get(&layer.name)
                .map_or(0, |tokens| tokens * layer.columns * (layer.columns + 1) / 2)
        };
        inputs.map(|input| input.layers.first().map_or(0, of) as u64).sum()
    }

    /// Returns the multiply-accumulates of an OBS solver: d^3 for the factors of the Hessian of an
    /// input of width d, and half of rows x d^2 for each layer that reads the input.
    #[must_use]
    pub fn solver_macs(&self) -> u64 {
        let of = |input: &SharedInput| {
            let width = input.width() as u64;
            let rows: u64 = input.layers.iter().map(|layer| layer.rows as u64).sum();
            width.pow(2).saturating_mul(width + rows / 2)
        };
        self.packages.iter().flat_map(Package::watched_inputs).map(of).fold(0, u64::saturating_add)
    }
}

/// Returns OBS-Diff's units in block order: per block {QKV}, {out}, {ff up}, {ff down}, over all
/// streams.
fn weight_units(
    structure: &Structure,
    selection: &Selection,
    pattern: Option<Pattern>,
) -> Vec<Package> {
    let mut units = Vec::new();
    for block in &structure.blocks {
        use Role::{AttentionOutput, FeedForwardDown, FeedForwardUp, QueryKeyValue};
        for kind in [QueryKeyValue, AttentionOutput, FeedForwardUp, FeedForwardDown] {
            let mut unit = Package::default();
            for layer in &block.layers {
                let (Some(prunable), Operation::Linear { rows, inputs, outputs }) =
                    (&layer.prunable, layer.operation)
                else {
                    continue;
                };
                if prunable.role != kind || !selection.takes(&layer.name) {
                    continue;
                }
                let name = layer.name.clone();
                let planned =
                    PlannedLayer { name, rows: outputs, columns: inputs, tokens: rows, pattern };
                unit.add(&SharedInput { name: prunable.input.clone(), layers: vec![planned] });
            }
            if !unit.inputs.is_empty() {
                units.push(unit);
            }
        }
    }
    units
}

/// Returns the units of structured removal in block order: per block its {heads} and {neurons},
/// over all streams. Groups that one layer reads (FLUX's single blocks) are one unit.
fn structured_units(
    structure: &Structure,
    selection: &Selection,
    portion: &Portion,
    task: &dyn Demand,
) -> Vec<Package> {
    let with_groups = |block: &&Block| !(block.heads.is_empty() && block.neurons.is_empty());
    let blocks: Vec<&Block> = structure.blocks.iter().filter(with_groups).collect();
    let ends = portion.keep_ends.min(blocks.len());
    let middle = blocks.len().saturating_sub(ends).max(ends);
    let mut units: Vec<Package> = Vec::new();
    for block in &blocks[ends..middle] {
        let first = units.len();
        for group in block.groups().filter(|group| selection.takes_group(group)) {
            let remove = portion.count(&group);
            if remove == 0 {
                continue;
            }
            let planned = PlannedGroup { group, remove };
            let readers = outputs(std::slice::from_ref(&planned));
            let mut own = units[first..].iter_mut();
            let reads = |unit: &&mut Package| !outputs(&unit.coupled[0]).is_disjoint(&readers);
            let unit = match own.find(reads) {
                Some(unit) => unit,
                None => {
                    units.push(Package { coupled: vec![Vec::new()], ..Package::default() });
                    let Some(unit) = units.last_mut() else { continue };
                    unit
                }
            };
            let watched = task.watched(&planned.group);
            let inputs = block
                .layers
                .iter()
                .filter(|layer| watched.contains(&layer.name))
                .filter_map(watched_input);
            inputs.for_each(|input| unit.add(&input));
            unit.coupled[0].push(planned);
        }
    }
    units
}

/// Returns the input of a layer, to watch it, or `None` if the layer is no prunable linear.
fn watched_input(layer: &Layer) -> Option<SharedInput> {
    let (Operation::Linear { rows, inputs, outputs }, Some(prunable)) =
        (layer.operation, &layer.prunable)
    else {
        return None;
    };
    let planned = PlannedLayer {
        name: layer.name.clone(),
        rows: outputs,
        columns: inputs,
        tokens: rows,
        pattern: None,
    };
    Some(SharedInput { name: prunable.input.clone(), layers: vec![planned] })
}

/// Returns the error's text for a selection that chooses nothing.
fn nothing_chosen(structure: &Structure, change: Change) -> String {
    let (what, known): (&str, Vec<LayerName>) = match change {
        Change::Weights(_) => (
            "layer",
            structure.layers().filter(|l| l.prunable.is_some()).map(|l| l.name.clone()).collect(),
        ),
        Change::Groups(_) => {
            let removable =
                structure.groups().filter(|group| !matches!(group, Group::Dimensions(_)));
            ("group of heads or neurons", removable.map(|group| group.name().clone()).collect())
        }
    };
    let example = known.first().map_or("none", LayerName::as_str);
    let mut problem =
        format!("no {what} to prune is left; the model has {}, such as {example}", known.len());
    problem += match change {
        Change::Weights(_) => ": see `include` and `exclude`",
        Change::Groups(_) => {
            ": see `include`, `exclude` and `keep-ends`, and the sparsity, which may be too low"
        }
    };
    problem
}
