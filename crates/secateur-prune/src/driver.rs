//! The loop over packages: calibrate, solve, put the pruned weights in, go on.

use crate::calibrate::{Calibration, calibrate};
use crate::error::{Error, Result};
use crate::hessian::hessian_error;
use crate::journal::Journal;
use crate::method::{LayerWeight, Method, Solved};
use crate::plan::{Plan, PlannedGroup, SharedInput, outputs};
use crate::statistics::{InputStatistics, SavedStatistics};
use crate::structured::{Output, StructuredMethod};
use crate::task::Task;
use candle_core::{Device, Tensor};
use secateur_models::{Cuts, Edits, Observer, Pipeline, cast};
use secateur_nn::LayerName;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
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
    /// Relative squared error of its output over the calibration, see [`hessian_error`].
    pub error: f64,
    /// Relative damping of its Hessian; 0 where the method uses none.
    pub damping: f64,
    /// Number of its package, from 0.
    pub package: usize,
}

/// What became of heads or neurons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupOutcome {
    /// The module's name.
    pub name: LayerName,
    /// `heads` or `neurons`.
    pub kind: String,
    /// How many there were.
    pub count: usize,
    /// Those that went, ascending.
    pub removed: Vec<usize>,
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
}

/// Where statistics come from.
pub enum Source<'a> {
    /// The model is run for each package, with weights of the steps: see [`Calibration::step_weights`].
    Calibration(&'a Calibration, &'a [f64]),
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
/// from there, and the others go into it.
///
/// # Errors
/// If a layer cannot be pruned, the model fails, or the observer interrupts; the pipeline may then hold the packages
/// that were done.
pub fn prune(
    pipeline: &mut Pipeline,
    plan: &Plan,
    task: &Task<'_>,
    source: &Source<'_>,
    journal: Option<&Journal>,
    observer: &dyn Observer,
) -> Result<Outcome> {
    if plan.packages.len() > 1 && !matches!(source, Source::Calibration(..)) {
        let problem = "statistics that were gathered before serve one package: later ones would have to see the model as pruned so far";
        return Err(Error::Request(problem.into()));
    }
    let mut outcome = Outcome::of(pipeline);
    for (index, package) in plan.packages.iter().enumerate() {
        if let Some(done) = journal.map(|journal| journal.load(index)).transpose()?.flatten() {
            pipeline.apply(&done.edits)?;
            outcome.extend(done);
            continue;
        }
        let of = |stage: &str| match plan.packages.len() {
            1 => stage.to_owned(),
            count => format!("{stage} {}/{count}", index + 1),
        };
        let mut gathered = BTreeMap::new();
        if let Source::Calibration(calibration, step_weights) = source {
            let total = calibration.prompts.len() * calibration.sampling.steps;
            observer.begin(&of("calibrate"), total, "image steps");
            gathered = calibrate(pipeline, package, calibration, step_weights, observer)?;
        }
        let statistics = |input: &SharedInput| source.statistics(input, &gathered);
        observer.begin(&of("solve"), package.layers().count(), "layers");
        let mut done = Outcome::of(pipeline);
        // At once, so that the old weights do not stay in memory beside the new ones of a whole package.
        let mut apply = |pipeline: &mut Pipeline, part: Outcome, layers: usize| -> Result<()> {
            pipeline.apply(&part.edits)?;
            observer.advance(layers)?;
            done.extend(part);
            Ok(())
        };
        match *task {
            Task::Weights { method, .. } => {
                for input in &package.inputs {
                    let part = solve(pipeline, input, method, &*statistics(input)?)?;
                    apply(pipeline, part, input.layers.len())?;
                }
            }
            Task::Structured { method, .. } => {
                for coupled in &package.coupled {
                    let layers = outputs(coupled).len();
                    // An allocation leaves some whole.
                    let coupled: Vec<_> = coupled.iter().filter(|planned| planned.remove > 0).cloned().collect();
                    let inputs = package.inputs_of(&coupled);
                    let inputs = inputs.map(|input| Ok((input, statistics(input)?))).collect::<Result<Vec<_>>>()?;
                    let part = remove(pipeline, &coupled, &inputs, method)?;
                    apply(pipeline, part, layers)?;
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
    }
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

/// Removes heads and neurons of groups that the same layers read; `inputs` are these layers', with statistics.
pub(crate) fn remove(
    pipeline: &Pipeline,
    coupled: &[PlannedGroup],
    inputs: &[(&SharedInput, Cow<'_, InputStatistics>)],
    method: &dyn StructuredMethod,
) -> Result<Outcome> {
    let read = |name: &LayerName| read_weight(pipeline, name);
    let before = inputs.iter().map(|(input, _)| read(&input.name)).collect::<Result<Vec<_>>>()?;
    let mut outputs: Vec<Output<'_>> = Vec::with_capacity(inputs.len());
    for (weight, (_, statistics)) in before.iter().zip(inputs) {
        outputs.push(Output { weight: weight.clone(), statistics });
    }
    let removed = method.remove(coupled, &mut outputs, &read)?;
    let mut outcome = Outcome::of(pipeline);
    let mut parts = Vec::new();
    for (PlannedGroup { group, .. }, positions) in coupled.iter().zip(removed.positions) {
        parts.extend(group.parts(&positions));
        outcome.edits.removals.remove(group.name(), group.count(), &positions);
        let (name, kind, count) = (group.name().clone(), group.kind().to_owned(), group.count());
        outcome.groups.push(GroupOutcome { name, kind, count, removed: positions });
    }
    let cuts = Cuts::new(parts);
    let weights = &mut outcome.edits.weights;
    for parameter in cuts.parameters() {
        let Some(old) = pipeline.parameters().get(&parameter) else { continue };
        weights.insert(parameter.clone(), cuts.take_out(&parameter, old)?);
    }
    for (old, Output { weight: new, statistics }) in before.iter().zip(outputs) {
        let parameter = old.layer.weight();
        let (weight, values) = rounded(pipeline, &new)?;
        outcome.layers.push(layer_outcome(old, &values, statistics, removed.damping));
        weights.insert(parameter.clone(), cuts.take_out(&parameter, &weight)?);
    }
    Ok(outcome)
}

/// A weight as it comes back from a file of the checkpoint's type, and its values.
fn rounded(pipeline: &Pipeline, weight: &LayerWeight) -> Result<(Tensor, Vec<f32>)> {
    let LayerWeight { layer, rows, columns, values } = weight;
    let info = pipeline.folder().checkpoint().tensor(&layer.weight());
    let dtype = info.ok_or_else(|| Error::layer(layer, "not in the checkpoint"))?.dtype;
    let weight = cast(&Tensor::from_slice(values, (*rows, *columns), &Device::Cpu)?, dtype)?;
    let values = weight.flatten_all()?.to_vec1::<f32>()?;
    match values.iter().all(|value| value.is_finite()) {
        true => Ok((weight, values)),
        false => Err(Error::layer(layer, format!("its pruned weight does not fit {dtype:?}"))),
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
