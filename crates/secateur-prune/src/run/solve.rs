//! Calls of a method for one input, or for one set of groups.

use crate::calibration::{InputStatistics, hessian_error};
use crate::error::{Error, Result};
use crate::methods::{LayerWeight, Layers, Method, Solved, StructuredMethod};
use crate::plan::{Package, PlannedGroup, SharedInput};
use crate::run::outcome::{GroupOutcome, LayerOutcome, Outcome};
use candle_core::{Device, Tensor};
use secateur_models::{Cuts, Pipeline, cast};
use secateur_nn::LayerName;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Prunes the layers of one input.
pub(crate) fn solve(
    pipeline: &Pipeline,
    input: &SharedInput,
    method: &dyn Method,
    statistics: &InputStatistics,
) -> Result<Outcome> {
    let before = input
        .layers
        .iter()
        .map(|layer| read_weight(pipeline, &layer.name))
        .collect::<Result<Vec<_>>>()?;
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

/// Removes parts of groups that the same layers read, with statistics of the inputs that `method`
/// watches.
pub(crate) fn remove<'a>(
    pipeline: &Pipeline,
    coupled: &[PlannedGroup],
    package: &Package,
    method: &dyn StructuredMethod,
    statistics: &dyn Fn(&SharedInput) -> Result<Cow<'a, InputStatistics>>,
) -> Result<Outcome> {
    let mut watched = BTreeMap::new();
    let inputs = package.watched(coupled, &|group| method.watched(group));
    let of_inputs = inputs.iter().map(statistics).collect::<Result<Vec<_>>>()?;
    for (input, statistics) in inputs.iter().zip(&of_inputs) {
        watched.extend(input.layers.iter().map(|layer| (&layer.name, &**statistics)));
    }
    let layers = Watched { pipeline, watched };
    let removed = method.remove(coupled, &layers)?;
    let mut outcome = Outcome { turns: removed.turns, ..Outcome::of(pipeline) };
    let mut parts = Vec::new();
    for ((PlannedGroup { group, .. }, positions), error) in
        coupled.iter().zip(removed.positions).zip(removed.errors)
    {
        parts.extend(group.parts(&positions));
        outcome.edits.removals.remove(group.name(), group.count(), &positions);
        let (name, kind, count) = (group.name().clone(), group.kind().to_owned(), group.count());
        outcome.groups.push(GroupOutcome {
            name,
            kind,
            count,
            removed: positions,
            error,
            module_error: None,
        });
    }
    let cuts = Cuts::new(parts);
    let weights = &mut outcome.edits.weights;
    for parameter in cuts.parameters() {
        let Some(old) = pipeline.parameter(&parameter)? else { continue };
        weights.insert(parameter.clone(), cuts.take_out(&parameter, &old)?);
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
        let bias = as_stored(
            pipeline,
            &layer.bias(),
            &Tensor::from_slice(&new, new.len(), &Device::Cpu)?,
        )?;
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
        let bias = self.pipeline.parameter(&layer.bias())?;
        Ok(bias.map(|bias| bias.to_vec1()).transpose()?)
    }

    fn statistics(&self, layer: &LayerName) -> Result<&InputStatistics> {
        let found = self.watched.get(layer).copied();
        found.ok_or_else(|| Error::layer(layer, "its input was not watched"))
    }
}

/// Returns a weight, rounded to the checkpoint's type, as a tensor and as values.
fn rounded(pipeline: &Pipeline, weight: &LayerWeight) -> Result<(Tensor, Vec<f32>)> {
    let LayerWeight { layer, rows, columns, values } = weight;
    let weight = Tensor::from_slice(values, (*rows, *columns), &Device::Cpu)?;
    let weight = as_stored(pipeline, &layer.weight(), &weight)?;
    let values = weight.flatten_all()?.to_vec1::<f32>()?;
    Ok((weight, values))
}

/// Returns the new values of a parameter, rounded to the checkpoint's type.
fn as_stored(pipeline: &Pipeline, parameter: &str, tensor: &Tensor) -> Result<Tensor> {
    let info = pipeline.folder().checkpoint().tensor(parameter);
    let dtype = info.ok_or_else(|| Error::layer(&parameter.into(), "not in the checkpoint"))?.dtype;
    let rounded = cast(tensor, dtype)?;
    match rounded.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite()) {
        true => Ok(rounded),
        false => {
            Err(Error::layer(&parameter.into(), format!("its new values do not fit {dtype:?}")))
        }
    }
}

fn layer_outcome(
    old: &LayerWeight,
    new: &[f32],
    statistics: &InputStatistics,
    damping: f64,
) -> LayerOutcome {
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
    let weight = pipeline.parameter(&layer.weight())?;
    let weight = weight.ok_or_else(|| Error::layer(layer, "no weight in the checkpoint"))?;
    let (rows, columns) = weight.dims2()?;
    Ok(LayerWeight {
        layer: layer.clone(),
        rows,
        columns,
        values: weight.flatten_all()?.to_vec1()?,
    })
}
