//! The loop over packages: calibrate, solve, set the pruned weights.

use crate::calibration::calibrate;
use crate::error::{Error, Result};
use crate::methods::Task;
use crate::plan::{Plan, PlannedGroup, SharedInput};
use crate::run::journal::Journal;
use crate::run::module_error::{ModuleErrors, relative};
use crate::run::outcome::Outcome;
use crate::run::solve::{remove, solve};
use crate::run::source::Source;
use secateur_models::{Group, Observer, Pipeline};
use secateur_nn::LayerName;
use std::collections::{BTreeMap, BTreeSet};

/// Prunes `pipeline` in place by `task`, as `plan` says, package after package. Packages that
/// `journal` has are taken from it, and the others are saved to it. With `module_errors`, the
/// outcome has the errors of whole attentions.
///
/// # Errors
/// If a layer cannot be pruned, the model fails, or the observer interrupts. The pipeline may then
/// be pruned in part, package by package.
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
        let problem = "statistics that were gathered before serve one package: later ones would \
            have to see the model as pruned so far";
        return Err(Error::Request(problem.into()));
    }
    let mut outcome = Outcome::of(pipeline);
    for (index, package) in plan.packages.iter().enumerate() {
        let known = journal.and_then(|journal| journal.load(index, package, pipeline, observer));
        if let Some(done) = known {
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
            gathered = calibrate(
                pipeline,
                package,
                calibration,
                step_weights,
                sums,
                &of("calibrate"),
                observer,
            )?;
        }
        let statistics = |input: &SharedInput| source.statistics(input, &gathered);
        let (total, unit) = match task {
            Task::Weights { .. } => (package.layers().count(), "layers"),
            Task::Structured { .. } => (package.coupled.iter().flatten().count(), "modules"),
        };
        observer.begin(&of("solve"), total, unit);
        let mut done = Outcome::of(pipeline);
        let mut unfinished = journal.map(|journal| journal.begin(index)).transpose()?;
        let mut keep = |pipeline: &Pipeline, part: &mut Outcome| match &mut unfinished {
            Some(unfinished) => unfinished.add(pipeline, &mut part.edits),
            None => Ok(()),
        };
        // Each part is applied at once, so that old weights do not stay in memory beside the new
        // ones of a whole package.
        match *task {
            Task::Weights { method, .. } => {
                for input in &package.inputs {
                    let mut part = solve(pipeline, input, method, &statistics(input)?)?;
                    keep(pipeline, &mut part)?;
                    pipeline.apply(&part.edits)?;
                    done.extend(part);
                    observer.advance(input.layers.len())?;
                }
            }
            Task::Structured { method, .. } => {
                for coupled in &package.coupled {
                    // An allocation leaves some whole.
                    let some: Vec<_> =
                        coupled.iter().filter(|planned| planned.remove > 0).cloned().collect();
                    let judge = module_errors.map(|errors| (errors, attention_outputs(&some)));
                    let judge = judge.filter(|(_, outputs)| !outputs.is_empty());
                    let outputs = |pipeline: &Pipeline| {
                        judge
                            .as_ref()
                            .map(|(errors, outputs)| errors.outputs(pipeline, outputs))
                            .transpose()
                    };
                    let before = outputs(pipeline)?;
                    let mut part = remove(pipeline, &some, package, method, &statistics)?;
                    keep(pipeline, &mut part)?;
                    pipeline.apply(&part.edits)?;
                    if let (Some(before), Some(after)) = (before, outputs(pipeline)?) {
                        let error = relative(&before, &after);
                        for (planned, group) in some.iter().zip(&mut part.groups) {
                            group.module_error =
                                matches!(planned.group, Group::Dimensions(_)).then_some(error);
                        }
                    }
                    done.extend(part);
                    observer.advance(coupled.len())?;
                }
            }
        }
        done.layers.iter_mut().for_each(|layer| layer.package = index);
        if let Some(unfinished) = unfinished {
            unfinished.finish(&done)?;
        }
        outcome.extend(done);
        if plan.packages.len() == 1 {
            outcome.statistics = gathered;
        }
    }
    Ok(outcome)
}

/// Returns the output projections of the attentions that lose dimensions.
fn attention_outputs(groups: &[PlannedGroup]) -> BTreeSet<LayerName> {
    let heads = groups.iter().filter_map(|planned| match &planned.group {
        Group::Dimensions(dimensions) => Some(&dimensions.heads),
        _ => None,
    });
    let outputs =
        heads.flat_map(|heads| &heads.streams).filter_map(|stream| stream.output.as_ref());
    outputs.map(|output| output.layer.clone()).collect()
}
