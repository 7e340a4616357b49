//! The loop over packages: calibrate, solve, put the pruned weights in, go on.

use crate::calibrate::{Calibration, calibrate};
use crate::error::{Error, Result};
use crate::hessian::hessian_error;
use crate::method::{LayerWeight, Method, Solved};
use crate::pattern::Pattern;
use crate::plan::{Plan, SharedInput};
use crate::statistics::{InputStatistics, SavedStatistics};
use candle_core::{Device, Tensor};
use secateur_models::{Observer, Pipeline, cast};
use secateur_nn::LayerName;
use std::collections::BTreeMap;

/// What became of a layer.
#[derive(Clone, Debug, PartialEq)]
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

/// What pruning gives.
#[derive(Debug, Default)]
pub struct Outcome {
    /// New weights by parameter name, rounded to the checkpoint's type.
    pub weights: BTreeMap<String, Tensor>,
    /// The pruned layers in execution order.
    pub layers: Vec<LayerOutcome>,
    /// The statistics of the model as it was: where it was calibrated in one package, and else none.
    pub statistics: BTreeMap<LayerName, InputStatistics>,
}

/// Where statistics come from.
pub enum Source<'a> {
    /// The model is run for each package.
    Calibration(&'a Calibration),
    /// They were gathered before, on the model as it was.
    Saved(&'a SavedStatistics),
}

/// Prunes the layers of `plan` by `method` to `pattern`, package after package, in `pipeline` itself.
///
/// # Errors
/// If a layer cannot be pruned, the model fails, or the observer interrupts; the pipeline may then hold the packages
/// that were done.
pub fn prune(
    pipeline: &mut Pipeline,
    plan: &Plan,
    method: &dyn Method,
    pattern: Pattern,
    source: &Source<'_>,
    observer: &dyn Observer,
) -> Result<Outcome> {
    for layer in plan.layers() {
        if let Some(problem) = pattern.obstacle(layer.columns) {
            return Err(Error::layer(&layer.name, problem));
        }
    }
    if plan.packages.len() > 1 && matches!(source, Source::Saved(_)) {
        let problem = "saved statistics serve one package: later ones would have to see the model as pruned so far";
        return Err(Error::Request(problem.into()));
    }
    let mut outcome = Outcome::default();
    for (index, package) in plan.packages.iter().enumerate() {
        let of = |stage: &str| match plan.packages.len() {
            1 => stage.to_owned(),
            count => format!("{stage} {}/{count}", index + 1),
        };
        outcome.statistics.clear();
        if let Source::Calibration(calibration) = source {
            let total = calibration.prompts.len() * calibration.sampling.steps;
            observer.begin(&of("calibrate"), total, "image steps");
            outcome.statistics = calibrate(pipeline, package, calibration, observer)?;
        }
        observer.begin(&of("solve"), package.layers().count(), "layers");
        for input in &package.inputs {
            let loaded;
            let statistics = match source {
                Source::Saved(saved) => {
                    loaded = saved.input(&input.name, input.width())?;
                    &loaded
                }
                Source::Calibration(_) => outcome
                    .statistics
                    .get(&input.name)
                    .ok_or_else(|| Error::layer(&input.name, "no statistics: the model ran without calling it"))?,
            };
            let mut weights = BTreeMap::new();
            for solved in solve(pipeline, input, method, pattern, statistics, index)? {
                outcome.layers.push(solved.outcome);
                weights.insert(solved.parameter, solved.weight);
                observer.advance(1)?;
            }
            // At once, so that the old weights do not stay in memory beside the new ones of a whole package.
            pipeline.replace(&weights)?;
            outcome.weights.extend(weights);
        }
    }
    if plan.packages.len() > 1 {
        outcome.statistics.clear();
    }
    Ok(outcome)
}

/// A layer's new weight and what became of it.
struct SolvedLayer {
    parameter: String,
    weight: Tensor,
    outcome: LayerOutcome,
}

/// Prunes the layers of one input.
fn solve(
    pipeline: &Pipeline,
    input: &SharedInput,
    method: &dyn Method,
    pattern: Pattern,
    statistics: &InputStatistics,
    package: usize,
) -> Result<Vec<SolvedLayer>> {
    let before = read_weights(pipeline, input)?;
    let mut after = before.clone();
    let Solved { damping } = method.prune(&mut after, statistics, pattern)?;
    let finish = |(old, new): (&LayerWeight, &LayerWeight)| {
        let parameter = old.layer.weight();
        let dtype = pipeline.folder().checkpoint().tensor(&parameter).map(|info| info.dtype);
        let dtype = dtype.ok_or_else(|| Error::layer(&old.layer, "not in the checkpoint"))?;
        let weight = Tensor::from_slice(&new.values, (new.rows, new.columns), &Device::Cpu)?;
        let weight = cast(&weight, dtype)?;
        let values = weight.flatten_all()?.to_vec1::<f32>()?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::layer(&old.layer, format!("its pruned weight does not fit {dtype:?}")));
        }
        let outcome = LayerOutcome {
            name: old.layer.clone(),
            rows: old.rows,
            columns: old.columns,
            zeros: values.iter().filter(|value| **value == 0.0).count(),
            error: hessian_error(&old.values, &values, &statistics.hessian),
            damping,
            package,
        };
        Ok(SolvedLayer { parameter, weight, outcome })
    };
    before.iter().zip(&after).map(finish).collect()
}

fn read_weights(pipeline: &Pipeline, input: &SharedInput) -> Result<Vec<LayerWeight>> {
    let read = |layer: &crate::plan::PlannedLayer| {
        let weight = pipeline.parameters().get(&layer.name.weight());
        let weight = weight.ok_or_else(|| Error::layer(&layer.name, "no weight in the checkpoint"))?;
        Ok(LayerWeight {
            layer: layer.name.clone(),
            rows: layer.rows,
            columns: layer.columns,
            values: weight.flatten_all()?.to_vec1()?,
        })
    };
    input.layers.iter().map(read).collect()
}
