//! The loop over packages: calibrate, solve, put the pruned weights in, go on.

use crate::calibrate::{Calibration, calibrate};
use crate::carry::Turn;
use crate::error::{Error, Result};
use crate::hessian::hessian_error;
use crate::journal::Journal;
use crate::method::{LayerWeight, Method, Solved};
use crate::module_error::{ModuleErrors, relative};
use crate::plan::{Package, Plan, PlannedGroup, SharedInput};
use crate::statistics::{InputStatistics, SavedStatistics};
use crate::structured::{Layers, StructuredMethod};
use crate::task::Task;
use candle_core::{Device, Tensor};
use secateur_models::{Cuts, Edits, Group, Observer, Pipeline, cast};
use secateur_nn::LayerName;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

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
    /// Relative squared error of its output over the calibration, see [`hessian_error`].
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
    /// Relative squared error of the product that they are a part of, over the calibration, where the method tells it; else it is
    /// in the errors of the layers that read them.
    pub error: Option<f64>,
    /// Relative squared error of the attention that dimensions were removed of, after the softmax and the output projection,
    /// see [`ModuleErrors`].
    pub module_error: Option<f64>,
}

/// What pruning gives.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What changed: new weights, rounded to the checkpoint's type, and what is gone.
    pub edits: Edits,
    /// The layers whose weights were solved for, in execution order.
    pub layers: Vec<LayerOutcome>,
    /// The heads and neurons of which some went.
    pub groups: Vec<GroupOutcome>,
    /// The statistics of the model as it was: where it was calibrated in one package, and else none.
    pub statistics: Statistics,
    /// Columns of inputs that are in a new basis.
    pub turns: Vec<Turn>,
}

/// Where statistics come from.
pub enum Source<'a> {
    /// The model is run for each package, with weights of the steps: see
    /// [`Calibration::step_weights`]. What is summed up is kept in the journal.
    Calibration(&'a Calibration, &'a [f64], Option<&'a Journal>),
    /// They were gathered before, on the model as it was.
    Saved(&'a SavedStatistics),
    /// They were gathered just now, on the model as it is, for the only package.
    Gathered(&'a Statistics),
}

/// Statistics by the name of the input.
pub type Statistics = BTreeMap<LayerName, InputStatistics>;

impl Source<'_> {
    /// Those of an input; `gathered` are what a calibration came to.
    pub(crate) fn statistics<'a>(
        &'a self,
        input: &SharedInput,
        gathered: &'a Statistics,
    ) -> Result<Cow<'a, InputStatistics>> {
        let gathered = match self {
            Source::Saved(saved) => return saved.input(&input.name, input.width()).map(Cow::Owned),
            Source::Gathered(gathered) => gathered,
            Source::Calibration(..) => gathered,
        };
        let found = gathered.get(&input.name).map(Cow::Borrowed);
        found.ok_or_else(|| Error::layer(&input.name, "no statistics: the model ran without calling it"))
    }
}

/// Does `task` to what `plan` chose, package after package, in `pipeline` itself. The packages that `journal` has are taken
/// from there, and the others go into it. With `module_errors` the outcome tells what became of attentions as a whole.
///
/// # Errors
/// If a layer cannot be pruned, the model fails, or the observer interrupts; the pipeline may then hold the packages
/// that were done.
pub fn prune(
    pipeline: &mut Pipeline,
    plan: &Plan,
    task: &Task<'_>,
    source: &Source<'_>,
    module_errors: Option<&ModuleErrors>,
    journal: Option<&Journal>,
    observer: &dyn Observer,
) -> Result<Outcome> {
    if plan.packages.len() > 1 && !matches!(source, Source::Calibration(..)) {
        let problem = "statistics that were gathered before serve one package: later ones would have to see the model as pruned so far";
        return Err(Error::Request(problem.into()));
    }
    let mut outcome = Outcome::of(pipeline);
    for (index, package) in plan.packages.iter().enumerate() {
        if let Some(done) = journal.and_then(|journal| journal.load(index, package, observer)) {
            pipeline.apply(&done.edits)?;
            outcome.extend(done);
            continue;
        }
        let of = |stage: &str| match plan.packages.len() {
            1 => stage.to_owned(),
            count => format!("{stage} {}/{count}", index + 1),
        };
        let mut gathered = BTreeMap::new();
        if let Source::Calibration(calibration, step_weights, journal) = source {
            let sums = journal.map(|journal| journal.sums(index, index));
            gathered = calibrate(pipeline, package, calibration, step_weights, sums, &of("calibrate"), observer)?;
        }
        let statistics = |input: &SharedInput| source.statistics(input, &gathered);
        let (total, unit) = match task {
            Task::Weights { .. } => (package.layers().count(), "layers"),
            Task::Structured { .. } => (package.coupled.iter().flatten().count(), "modules"),
        };
        observer.begin(&of("solve"), total, unit);
        let mut done = Outcome::of(pipeline);
        // Each part is applied at once, so that old weights do not stay in memory beside the new ones of a whole package.
        match *task {
            Task::Weights { method, .. } => {
                for input in &package.inputs {
                    let part = solve(pipeline, input, method, &*statistics(input)?)?;
                    pipeline.apply(&part.edits)?;
                    done.extend(part);
                    observer.advance(input.layers.len())?;
                }
            }
            Task::Structured { method, .. } => {
                for coupled in &package.coupled {
                    // An allocation leaves some whole.
                    let some: Vec<_> = coupled.iter().filter(|planned| planned.remove > 0).cloned().collect();
                    let judge = module_errors.map(|errors| (errors, attention_outputs(&some)));
                    let judge = judge.filter(|(_, outputs)| !outputs.is_empty());
                    let outputs = |pipeline: &Pipeline| {
                        judge.as_ref().map(|(errors, outputs)| errors.outputs(pipeline, outputs)).transpose()
                    };
                    let before = outputs(pipeline)?;
                    let mut part = remove(pipeline, &some, package, method, &statistics)?;
                    pipeline.apply(&part.edits)?;
                    if let (Some(before), Some(after)) = (before, outputs(pipeline)?) {
                        let error = relative(&before, &after);
                        for (planned, group) in some.iter().zip(&mut part.groups) {
                            group.module_error = matches!(planned.group, Group::Dimensions(_)).then_some(error);
                        }
                    }
                    done.extend(part);
                    observer.advance(coupled.len())?;
                }
            }
        }
        done.layers.iter_mut().for_each(|layer| layer.package = index);
        if let Some(journal) = journal {
            journal.save(index, &done)?;
        }
        outcome.extend(done);
        if plan.packages.len() == 1 {
            outcome.statistics = gathered;
        }
    }
    Ok(outcome)
}

impl Outcome {
    /// Of nothing done to `pipeline` yet.
    fn of(pipeline: &Pipeline) -> Self {
        Self { edits: Edits { removals: pipeline.removals().clone(), ..Edits::default() }, ..Self::default() }
    }

    /// Takes in what was done next.
    fn extend(&mut self, next: Self) {
        self.edits.weights.extend(next.edits.weights);
        self.edits.removals = next.edits.removals;
        self.layers.extend(next.layers);
        self.groups.extend(next.groups);
        self.turns.extend(next.turns);
    }
}

/// The output projections of the attentions that dimensions go of.
fn attention_outputs(groups: &[PlannedGroup]) -> BTreeSet<LayerName> {
    let heads = groups.iter().filter_map(|planned| match &planned.group {
        Group::Dimensions(dimensions) => Some(&dimensions.heads),
        _ => None,
    });
    let outputs = heads.flat_map(|heads| &heads.streams).filter_map(|stream| stream.output.as_ref());
    outputs.map(|output| output.layer.clone()).collect()
}

/// Prunes the layers of one input.
pub(crate) fn solve(
    pipeline: &Pipeline,
    input: &SharedInput,
    method: &dyn Method,
    statistics: &InputStatistics,
) -> Result<Outcome> {
    let before = input.layers.iter().map(|layer| read_weight(pipeline, &layer.name)).collect::<Result<Vec<_>>>()?;
    let patterns = input.layers.iter().filter_map(|layer| layer.pattern);
    let mut after: Vec<_> = before.iter().cloned().zip(patterns).collect();
    let Solved { damping } = method.prune(&mut after, statistics)?;
    let mut outcome = Outcome::of(pipeline);
    for (old, (new, _)) in before.iter().zip(&after) {
        let parameter = old.layer.weight();
        let (weight, values) = rounded(pipeline, new)?;
        outcome.layers.push(layer_outcome(old, &values, statistics, damping));
        outcome.edits.weights.insert(parameter, weight);
    }
    Ok(outcome)
}

/// Removes some of groups that the same layers read, with statistics of what `method` watches.
pub(crate) fn remove<'a>(
    pipeline: &Pipeline,
    coupled: &[PlannedGroup],
    package: &Package,
    method: &dyn StructuredMethod,
    statistics: &dyn Fn(&SharedInput) -> Result<Cow<'a, InputStatistics>>,
) -> Result<Outcome> {
    let mut watched = BTreeMap::new();
    let inputs = package.watched(coupled, method);
    let of_inputs = inputs.iter().map(statistics).collect::<Result<Vec<_>>>()?;
    for (input, statistics) in inputs.iter().zip(&of_inputs) {
        watched.extend(input.layers.iter().map(|layer| (&layer.name, &**statistics)));
    }
    let layers = Watched { pipeline, watched };
    let removed = method.remove(coupled, &layers)?;
    let mut outcome = Outcome { turns: removed.turns, ..Outcome::of(pipeline) };
    let mut parts = Vec::new();
    for ((PlannedGroup { group, .. }, positions), error) in coupled.iter().zip(removed.positions).zip(removed.errors) {
        parts.extend(group.parts(&positions));
        outcome.edits.removals.remove(group.name(), group.count(), &positions);
        let (name, kind, count) = (group.name().clone(), group.kind().to_owned(), group.count());
        outcome.groups.push(GroupOutcome { name, kind, count, removed: positions, error, module_error: None });
    }
    let cuts = Cuts::new(parts);
    let weights = &mut outcome.edits.weights;
    for parameter in cuts.parameters() {
        let Some(old) = pipeline.parameters().get(&parameter) else { continue };
        weights.insert(parameter.clone(), cuts.take_out(&parameter, old)?);
    }
    // The error of a layer in a new basis says nothing.
    let told: Vec<LayerName> = coupled
        .iter()
        .zip(&outcome.groups)
        .filter(|(_, outcome)| outcome.error.is_none())
        .flat_map(|(planned, _)| planned.group.outputs())
        .collect();
    for (layer, new) in &removed.weights {
        let (weight, values) = rounded(pipeline, new)?;
        if told.contains(layer) {
            let (old, statistics) = (layers.weight(layer)?, layers.statistics(layer)?);
            outcome.layers.push(layer_outcome(&old, &values, statistics, removed.damping));
        }
        weights.insert(layer.weight(), cuts.take_out(&layer.weight(), &weight)?);
    }
    for (layer, new) in removed.biases {
        let bias = as_stored(pipeline, &layer.bias(), &Tensor::from_slice(&new, new.len(), &Device::Cpu)?)?;
        weights.insert(layer.bias(), cuts.take_out(&layer.bias(), &bias)?);
    }
    Ok(outcome)
}

/// A model, and statistics of some of its layers.
struct Watched<'a> {
    pipeline: &'a Pipeline,
    watched: BTreeMap<&'a LayerName, &'a InputStatistics>,
}

impl Layers for Watched<'_> {
    fn weight(&self, layer: &LayerName) -> Result<LayerWeight> {
        read_weight(self.pipeline, layer)
    }

    fn bias(&self, layer: &LayerName) -> Result<Option<Vec<f32>>> {
        let bias = self.pipeline.parameters().get(&layer.bias());
        Ok(bias.map(Tensor::to_vec1).transpose()?)
    }

    fn statistics(&self, layer: &LayerName) -> Result<&InputStatistics> {
        let found = self.watched.get(layer).copied();
        found.ok_or_else(|| Error::layer(layer, "its input was not watched"))
    }
}

/// A weight as it comes back from a file of the checkpoint's type, and its values.
fn rounded(pipeline: &Pipeline, weight: &LayerWeight) -> Result<(Tensor, Vec<f32>)> {
    let LayerWeight { layer, rows, columns, values } = weight;
    let weight = Tensor::from_slice(values, (*rows, *columns), &Device::Cpu)?;
    let weight = as_stored(pipeline, &layer.weight(), &weight)?;
    let values = weight.flatten_all()?.to_vec1::<f32>()?;
    Ok((weight, values))
}

/// The new values of a parameter, rounded to the checkpoint's type.
fn as_stored(pipeline: &Pipeline, parameter: &str, tensor: &Tensor) -> Result<Tensor> {
    let info = pipeline.folder().checkpoint().tensor(parameter);
    let dtype = info.ok_or_else(|| Error::layer(&parameter.into(), "not in the checkpoint"))?.dtype;
    let rounded = cast(tensor, dtype)?;
    match rounded.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite()) {
        true => Ok(rounded),
        false => Err(Error::layer(&parameter.into(), format!("its new values do not fit {dtype:?}"))),
    }
}

fn layer_outcome(old: &LayerWeight, new: &[f32], statistics: &InputStatistics, damping: f64) -> LayerOutcome {
    LayerOutcome {
        name: old.layer.clone(),
        rows: old.rows,
        columns: old.columns,
        zeros: new.iter().filter(|value| **value == 0.0).count(),
        error: hessian_error(&old.values, new, &statistics.hessian),
        damping,
        package: 0,
    }
}

fn read_weight(pipeline: &Pipeline, layer: &LayerName) -> Result<LayerWeight> {
    let weight = pipeline.parameters().get(&layer.weight());
    let weight = weight.ok_or_else(|| Error::layer(layer, "no weight in the checkpoint"))?;
    let (rows, columns) = weight.dims2()?;
    Ok(LayerWeight { layer: layer.clone(), rows, columns, values: weight.flatten_all()?.to_vec1()? })
}
