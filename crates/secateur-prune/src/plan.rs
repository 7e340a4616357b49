//! Which layers are pruned, in which order, and what that takes.

use crate::error::{Error, Result};
use crate::method::Method;
use globset::{Glob, GlobSet, GlobSetBuilder};
use secateur_kernels::gram::add_gram_scratch;
use secateur_models::{Operation, Structure, UnitKind};
use secateur_nn::LayerName;

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

/// A linear to prune.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedLayer {
    /// Its checkpoint name.
    pub name: LayerName,
    /// Rows of its weight.
    pub rows: usize,
    /// Columns of its weight.
    pub columns: usize,
    /// Rows of its input for one sample.
    pub tokens: usize,
}

/// Layers that read the same input and share one Hessian.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    fn solver_bytes(&self, method: &dyn Method) -> u64 {
        let weights: usize = self.layers.iter().map(|layer| layer.rows * layer.columns * size_of::<f32>()).sum();
        let scratch = self.layers.iter().map(|layer| method.scratch(layer.rows, layer.columns)).max();
        scratch.unwrap_or(0) + 6 * weights as u64
    }
}

/// Units that are calibrated and pruned together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    /// Their inputs, in execution order.
    pub inputs: Vec<SharedInput>,
}

/// The whole plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In execution order.
    pub packages: Vec<Package>,
}

impl Package {
    /// Takes an input in; one that is there already (a text that many blocks read) gets more layers.
    fn add(&mut self, input: &SharedInput) {
        match self.inputs.iter_mut().find(|own| own.name == input.name) {
            Some(own) => own.layers.extend(input.layers.iter().cloned()),
            None => self.inputs.push(input.clone()),
        }
    }

    /// All layers.
    pub fn layers(&self) -> impl Iterator<Item = &PlannedLayer> {
        self.inputs.iter().flat_map(|input| &input.layers)
    }

    /// Bytes of the Hessians of the package.
    #[must_use]
    pub fn statistics_bytes(&self) -> u64 {
        self.inputs.iter().map(SharedInput::statistics_bytes).sum()
    }

    /// Bytes of statistics, of what summing them up takes, and of the solver at its largest.
    #[must_use]
    pub fn bytes(&self, method: &dyn Method) -> u64 {
        let solver = self.inputs.iter().map(|input| input.solver_bytes(method));
        let gram = self.inputs.iter().map(|input| add_gram_scratch(input.width()));
        self.statistics_bytes() + gram.max().unwrap_or(0) + solver.max().unwrap_or(0)
    }
}

impl Plan {
    /// Cuts the chosen layers into packages of near-equal numbers of units.
    ///
    /// # Errors
    /// If no layer is chosen, or the memory does not hold even one unit.
    pub fn new(structure: &Structure, selection: &Selection, packages: Packages, method: &dyn Method) -> Result<Self> {
        let units = units(structure, selection);
        if units.is_empty() {
            let known: Vec<_> = structure.layers().filter(|l| l.prunable.is_some()).map(|l| l.name.as_str()).collect();
            let example = known.first().copied().unwrap_or("none");
            let problem = format!(
                "--include and --exclude leave no layer to prune; the model has {}, such as {example}",
                known.len()
            );
            return Err(Error::Request(problem));
        }
        match packages {
            Packages::Count(0) => Err(Error::Request("the number of packages must be at least 1".into())),
            Packages::Count(count) => Ok(Self::cut(&units, count)),
            Packages::Memory(budget) => {
                let largest = |plan: &Self| plan.packages.iter().map(|p| p.bytes(method)).max().unwrap_or(0);
                let plans = (1..=units.len()).map(|count| Self::cut(&units, count));
                let mut least = u64::MAX;
                for plan in plans {
                    let needed = largest(&plan);
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
            units[bound(package)..bound(package + 1)].iter().flat_map(|unit| &unit.inputs).for_each(|i| joined.add(i));
            joined
        };
        Self { packages: (0..count).map(join).collect() }
    }

    /// All layers in execution order.
    pub fn layers(&self) -> impl Iterator<Item = &PlannedLayer> {
        self.packages.iter().flat_map(Package::layers)
    }

    /// Bytes of the largest package.
    #[must_use]
    pub fn bytes(&self, method: &dyn Method) -> u64 {
        self.packages.iter().map(|package| package.bytes(method)).max().unwrap_or(0)
    }

    /// Multiply-accumulates of all Hessians for one sample of one step, symmetric products counted at half.
    #[must_use]
    pub fn hessian_macs(&self) -> u64 {
        let inputs = self.packages.iter().flat_map(|package| &package.inputs);
        inputs.map(|i| i.layers.first().map_or(0, |l| (l.tokens * l.columns * (l.columns + 1) / 2) as u64)).sum()
    }
}

/// OBS-Diff's units in block order: per block {QKV}, {out}, {ff up}, {ff down}, over all streams.
fn units(structure: &Structure, selection: &Selection) -> Vec<Package> {
    let mut units = Vec::new();
    for block in &structure.blocks {
        use UnitKind::{AttentionOutput, FeedForwardDown, FeedForwardUp, QueryKeyValue};
        for kind in [QueryKeyValue, AttentionOutput, FeedForwardUp, FeedForwardDown] {
            let mut unit = Package::default();
            for layer in &block.layers {
                let (Some(prunable), Operation::Linear { rows, inputs, outputs }) = (&layer.prunable, layer.operation)
                else {
                    continue;
                };
                if prunable.unit != kind || !selection.takes(&layer.name) {
                    continue;
                }
                let planned = PlannedLayer { name: layer.name.clone(), rows: outputs, columns: inputs, tokens: rows };
                unit.add(&SharedInput { name: prunable.input.clone(), layers: vec![planned] });
            }
            if !unit.inputs.is_empty() {
                units.push(unit);
            }
        }
    }
    units
}
