//! Which layers are pruned, in which order, and what that takes.

use crate::error::{Error, Result};
use crate::pattern::Pattern;
use crate::structured::StructuredMethod;
use crate::task::{Removal, Task};
use globset::{Glob, GlobSet, GlobSetBuilder};
use secateur_kernels::gram::add_gram_scratch;
use secateur_models::{Block, Group, Layer, Operation, Removals, Role, Structure};
use secateur_nn::LayerName;
use std::collections::{BTreeSet, HashMap};

/// Layers chosen by name: all that the family allows, or those that match `include` and not `exclude`.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    include: GlobSet,
    exclude: GlobSet,
}

impl Selection {
    /// From globs over layer names, such as `transformer_blocks.0.*` or `*.to_{q,k}`; an empty `include` means all.
    ///
    /// # Errors
    /// If a glob cannot be parsed.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self> {
        let set = |globs: &[String]| {
            let mut builder = GlobSetBuilder::new();
            for glob in globs {
                builder.add(Glob::new(glob).map_err(|e| Error::Request(format!("bad glob {glob:?}: {e}")))?);
            }
            builder.build().map_err(|e| Error::Request(e.to_string()))
        };
        Ok(Self { include: set(include)?, exclude: set(exclude)? })
    }

    /// A group goes by its own name and those of its layers: one that is included is enough, one that is excluded too.
    fn takes_group(&self, group: &Group) -> bool {
        let names: Vec<LayerName> =
            [group.name().clone()].into_iter().chain(group.inputs()).chain(group.outputs()).collect();
        let any = |set: &GlobSet| names.iter().any(|name| set.is_match(name.as_str()));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    fn takes(&self, name: &LayerName) -> bool {
        let name = name.as_str();
        (self.include.is_empty() || self.include.is_match(name)) && !self.exclude.is_match(name)
    }
}

/// How many module packages: each one is calibrated with the model as pruned by those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packages {
    /// That many, or as many as there are units if fewer.
    Count(usize),
    /// As few as fit: statistics and solver of one package in that many bytes.
    Memory(u64),
}

/// A linear whose weight changes.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedLayer {
    /// Its checkpoint name.
    pub name: LayerName,
    /// Rows of its weight.
    pub rows: usize,
    /// Columns of its weight.
    pub columns: usize,
    /// Rows of its input for one sample.
    pub tokens: usize,
    /// The zeros that it gets; none where columns are removed instead.
    pub pattern: Option<Pattern>,
}

/// Heads or neurons of which some are removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedGroup {
    /// All of them, and their rows and columns.
    pub group: Group,
    /// How many go.
    pub remove: usize,
}

/// Layers that read the same input and share one Hessian.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedInput {
    /// Names the input: the first layer of the family that reads it.
    pub name: LayerName,
    /// The layers, of the same number of columns.
    pub layers: Vec<PlannedLayer>,
}

impl SharedInput {
    /// Width of the input.
    #[must_use]
    pub fn width(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.columns)
    }

    fn statistics_bytes(&self) -> u64 {
        (self.width() * self.width() * size_of::<f32>()) as u64
    }

    /// The method's scratch, and the weights of these layers: as they were, as they become, rounded as a tensor and as
    /// values, and the two products of the error.
    fn solver_bytes(&self, task: &Task<'_>) -> u64 {
        let weights: usize = self.layers.iter().map(|layer| layer.rows * layer.columns * size_of::<f32>()).sum();
        let scratch = self.layers.iter().map(|layer| task.scratch(layer.rows, layer.columns)).max();
        scratch.unwrap_or(0) + 6 * weights as u64
    }
}

/// Units that are calibrated and pruned together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Package {
    /// Their inputs, in execution order.
    pub inputs: Vec<SharedInput>,
    /// Where heads and neurons are removed: those that are read by the same columns' layers, together.
    pub coupled: Vec<Vec<PlannedGroup>>,
    /// Inputs that are watched for a method after this one alone.
    pub carried: Vec<SharedInput>,
}

/// The whole plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In execution order.
    pub packages: Vec<Package>,
}

impl Package {
    /// Takes an input in; one that is there already (a text that many blocks read) gets more layers.
    fn add(&mut self, input: &SharedInput) {
        match self.inputs.iter_mut().find(|own| own.name == input.name) {
            Some(own) => {
                let new = input.layers.iter().filter(|layer| !own.layers.contains(layer));
                let new: Vec<_> = new.cloned().collect();
                own.layers.extend(new);
            }
            None => self.inputs.push(input.clone()),
        }
    }

    /// All layers.
    pub fn layers(&self) -> impl Iterator<Item = &PlannedLayer> {
        self.inputs.iter().flat_map(|input| &input.layers)
    }

    /// The inputs that statistics are gathered of.
    pub fn watched_inputs(&self) -> impl Iterator<Item = &SharedInput> {
        self.inputs.iter().chain(&self.carried)
    }

    /// Bytes of the Hessians of the package.
    #[must_use]
    pub fn statistics_bytes(&self) -> u64 {
        self.watched_inputs().map(SharedInput::statistics_bytes).sum()
    }

    /// Bytes of statistics, of what summing them up takes, and of the solver at its largest.
    #[must_use]
    pub fn bytes(&self, task: &Task<'_>) -> u64 {
        self.statistics_bytes() + self.gram_bytes() + self.solver_bytes(task)
    }

    /// The inputs that `method` watches to remove some of those groups, each with the layers among them.
    pub(crate) fn watched(&self, groups: &[PlannedGroup], method: &dyn StructuredMethod) -> Vec<SharedInput> {
        let watched: BTreeSet<LayerName> = groups.iter().flat_map(|planned| method.watched(&planned.group)).collect();
        let of = |input: &SharedInput| SharedInput {
            name: input.name.clone(),
            layers: input.layers.iter().filter(|layer| watched.contains(&layer.name)).cloned().collect(),
        };
        self.inputs.iter().map(of).filter(|input| !input.layers.is_empty()).collect()
    }

    /// Bytes that summing up the statistics takes beside them.
    #[must_use]
    pub fn gram_bytes(&self) -> u64 {
        self.watched_inputs().map(|input| add_gram_scratch(input.width())).max().unwrap_or(0)
    }

    /// Bytes of the largest of its Hessians.
    #[must_use]
    pub fn largest_statistics_bytes(&self) -> u64 {
        self.watched_inputs().map(SharedInput::statistics_bytes).max().unwrap_or(0)
    }

    /// Bytes that the solver takes for the first input, when the calibrated model is still as it was.
    #[must_use]
    pub fn first_solver_bytes(&self, task: &Task<'_>) -> u64 {
        let first = Self {
            inputs: match task {
                Task::Weights { .. } => self.inputs.iter().take(1).cloned().collect(),
                Task::Structured { .. } => self.inputs.clone(),
            },
            coupled: self.coupled.iter().take(1).cloned().collect(),
            ..Self::default()
        };
        first.solver_bytes(task)
    }

    /// Bytes that the solver takes at its largest.
    #[must_use]
    pub fn solver_bytes(&self, task: &Task<'_>) -> u64 {
        match task {
            Task::Weights { .. } => self.inputs.iter().map(|input| input.solver_bytes(task)).max().unwrap_or(0),
            Task::Structured { method, .. } => {
                let of_coupled = |coupled: &Vec<PlannedGroup>| {
                    self.watched(coupled, *method).iter().map(|input| input.solver_bytes(task)).sum()
                };
                self.coupled.iter().map(of_coupled).max().unwrap_or(0)
            }
        }
    }
}

impl Plan {
    /// Cuts what the task changes of the chosen layers into packages of near-equal numbers of units.
    ///
    /// # Errors
    /// If nothing is chosen, a layer cannot have the pattern, or the memory does not hold even one unit.
    pub fn new(structure: &Structure, selection: &Selection, packages: Packages, task: &Task<'_>) -> Result<Self> {
        let units = match task {
            Task::Weights { pattern, .. } => weight_units(structure, selection, Some(*pattern)),
            Task::Structured { method, removal } => structured_units(structure, selection, removal, *method),
        };
        if units.is_empty() {
            return Err(Error::Request(nothing_chosen(structure, task)));
        }
        for layer in units.iter().flat_map(Package::layers) {
            if let Some(pattern) = layer.pattern {
                pattern.check(&layer.name, layer.columns)?;
            }
        }
        match packages {
            Packages::Count(0) => Err(Error::Request("the number of packages must be at least 1".into())),
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
                    "--memory {} MiB does not hold the statistics and solver of one unit: at least {} MiB are needed",
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

    /// Has the inputs of all attentions and feed-forwards watched as well, for [`Source::carried`](crate::Source::carried).
    ///
    /// # Errors
    /// If the plan has more than one package.
    pub fn carry(&mut self, structure: &Structure) -> Result<()> {
        let [package] = self.packages.as_mut_slice() else {
            let problem = "statistics can be carried over to the new model only with one package, as later packages see a \
                           model that was changed: with --packages 1 or more --memory there is one";
            return Err(Error::Request(problem.into()));
        };
        for input in weight_units(structure, &Selection::default(), None).iter().flat_map(|unit| &unit.inputs) {
            if package.watched_inputs().all(|watched| watched.name != input.name) {
                package.carried.push(input.clone());
            }
        }
        Ok(())
    }

    /// All layers in execution order.
    pub fn layers(&self) -> impl Iterator<Item = &PlannedLayer> {
        self.packages.iter().flat_map(Package::layers)
    }

    /// Bytes of the largest package.
    #[must_use]
    pub fn bytes(&self, task: &Task<'_>) -> u64 {
        self.packages.iter().map(|package| package.bytes(task)).max().unwrap_or(0)
    }

    /// All groups of heads and neurons, in execution order.
    pub fn groups(&self) -> impl Iterator<Item = &PlannedGroup> {
        self.packages.iter().flat_map(|package| package.coupled.iter().flatten())
    }

    /// All that a model lacks once the groups have lost what the plan says, if `before` is what it lacks now. Which ones go
    /// is not known yet: the first ones stand for them.
    #[must_use]
    pub fn removals(&self, before: &Removals) -> Removals {
        let mut removals = before.clone();
        for PlannedGroup { group, remove } in self.groups() {
            removals.remove(group.name(), group.count(), &(0..*remove).collect::<Vec<_>>());
        }
        removals
    }

    /// Multiply-accumulates of all Hessians for one sample of one step, where layers have as many tokens as in `structure`;
    /// symmetric products counted at half.
    #[must_use]
    pub fn hessian_macs(&self, structure: &Structure) -> u64 {
        let inputs = self.packages.iter().flat_map(Package::watched_inputs);
        let tokens = |layer: &Layer| match layer.operation {
            Operation::Linear { rows, .. } => rows,
            _ => 0,
        };
        let tokens: HashMap<&LayerName, usize> = structure.layers().map(|layer| (&layer.name, tokens(layer))).collect();
        let of = |layer: &PlannedLayer| {
            tokens.get(&layer.name).map_or(0, |tokens| tokens * layer.columns * (layer.columns + 1) / 2)
        };
        inputs.map(|input| input.layers.first().map_or(0, of) as u64).sum()
    }

    /// Multiply-accumulates of an OBS solver: of an input of width d, d^3 for the factors of its Hessian, and half of
    /// rows x d^2 for a layer that reads it.
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

/// OBS-Diff's units in block order: per block {QKV}, {out}, {ff up}, {ff down}, over all streams.
fn weight_units(structure: &Structure, selection: &Selection, pattern: Option<Pattern>) -> Vec<Package> {
    let mut units = Vec::new();
    for block in &structure.blocks {
        use Role::{AttentionOutput, FeedForwardDown, FeedForwardUp, QueryKeyValue};
        for kind in [QueryKeyValue, AttentionOutput, FeedForwardUp, FeedForwardDown] {
            let mut unit = Package::default();
            for layer in &block.layers {
                let (Some(prunable), Operation::Linear { rows, inputs, outputs }) = (&layer.prunable, layer.operation)
                else {
                    continue;
                };
                if prunable.role != kind || !selection.takes(&layer.name) {
                    continue;
                }
                let name = layer.name.clone();
                let planned = PlannedLayer { name, rows: outputs, columns: inputs, tokens: rows, pattern };
                unit.add(&SharedInput { name: prunable.input.clone(), layers: vec![planned] });
            }
            if !unit.inputs.is_empty() {
                units.push(unit);
            }
        }
    }
    units
}

/// The units of structured removal in block order: per block its {heads} and {neurons}, over all streams; those that one
/// layer reads (FLUX's single blocks) are one unit.
fn structured_units(
    structure: &Structure,
    selection: &Selection,
    removal: &Removal,
    method: &dyn StructuredMethod,
) -> Vec<Package> {
    let with_groups = |block: &&Block| !(block.heads.is_empty() && block.neurons.is_empty());
    let blocks: Vec<&Block> = structure.blocks.iter().filter(with_groups).collect();
    let ends = removal.keep_ends.min(blocks.len());
    let middle = blocks.len().saturating_sub(ends).max(ends);
    let mut units: Vec<Package> = Vec::new();
    for block in &blocks[ends..middle] {
        let first = units.len();
        for group in block.groups().filter(|group| selection.takes_group(group)) {
            let remove = removal.count(&group);
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
            let watched = method.watched(&planned.group);
            let inputs = block.layers.iter().filter(|layer| watched.contains(&layer.name)).filter_map(watched_input);
            inputs.for_each(|input| unit.add(&input));
            unit.coupled[0].push(planned);
        }
    }
    units
}

/// The layers whose columns read those heads or neurons.
pub(crate) fn outputs(groups: &[PlannedGroup]) -> BTreeSet<LayerName> {
    groups.iter().flat_map(|planned| planned.group.outputs()).collect()
}

/// The input of a layer that is watched.
fn watched_input(layer: &Layer) -> Option<SharedInput> {
    let (Operation::Linear { rows, inputs, outputs }, Some(prunable)) = (layer.operation, &layer.prunable) else {
        return None;
    };
    let planned =
        PlannedLayer { name: layer.name.clone(), rows: outputs, columns: inputs, tokens: rows, pattern: None };
    Some(SharedInput { name: prunable.input.clone(), layers: vec![planned] })
}

/// What to say where a selection leaves nothing to do.
fn nothing_chosen(structure: &Structure, task: &Task<'_>) -> String {
    let (what, known): (&str, Vec<LayerName>) = match task {
        Task::Weights { .. } => {
            ("layer", structure.layers().filter(|l| l.prunable.is_some()).map(|l| l.name.clone()).collect())
        }
        Task::Structured { .. } => {
            let removable = structure.groups().filter(|group| !matches!(group, Group::Dimensions(_)));
            ("group of heads or neurons", removable.map(|group| group.name().clone()).collect())
        }
    };
    let example = known.first().map_or("none", LayerName::as_str);
    let mut problem = format!("no {what} to prune is left; the model has {}, such as {example}", known.len());
    problem += match task {
        Task::Weights { .. } => ": see --include and --exclude",
        Task::Structured { .. } => ": see --include and --exclude, --keep-ends, and the sparsity, which may be too low",
    };
    problem
}
