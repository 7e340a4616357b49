//! Calls of a method for one input, or for one set of groups.

use crate::calibration::{InputStatistics, hessian_error};
use crate::error::{Error, Result};
use crate::methods::{LayerWeight, Layers, Method, Solved, StructuredMethod, ToPrune};
use crate::plan::{Package, PlannedGroup, SharedInput};
use crate::run::outcome::{GroupOutcome, LayerOutcome, Outcome};
use candle_core::{DType, Device, Tensor};
use secateur_models::{Cuts, Group, Pipeline};
use secateur_nn::{LayerName, ops};
use std::collections::BTreeMap;

/// Prunes the layers of one input.
pub(crate) fn solve(
    pipeline: &Pipeline,
    input: &SharedInput,
    method: &dyn Method,
    statistics: &InputStatistics,
) -> Result<Outcome> {
    let statistics = &at_the_model(pipeline, statistics)?;
    let planned = input.layers.iter().filter_map(|layer| Some((&layer.name, layer.pattern?)));
    let before = planned.map(|(layer, pattern)| {
        Ok(ToPrune { layer: layer.clone(), weight: parameter(pipeline, layer)?, pattern })
    });
    let before = before.collect::<Result<Vec<_>>>()?;
    let mut after = before.clone();
    let Solved { damping } = method.prune(&mut after, statistics)?;
    let mut outcome = Outcome::of(pipeline);
    for (old, new) in before.into_iter().zip(after) {
        let parameter = old.layer.weight();
        let weight = as_stored(pipeline, &parameter, &new.weight)?;
        outcome.layers.push(layer_outcome(
            &old.layer,
            (&old.weight, &weight),
            statistics,
            damping,
        )?);
        outcome.edits.weights.insert(parameter, weight.into());
    }
    Ok(outcome)
}

/// Removes parts of groups that the same layers read, with statistics of the inputs that `method`
/// watches.
pub(crate) fn remove(
    pipeline: &Pipeline,
    coupled: &[PlannedGroup],
    package: &Package,
    method: &dyn StructuredMethod,
    statistics: &dyn Fn(&SharedInput) -> Result<InputStatistics>,
) -> Result<Outcome> {
    let layers = Watched::new(pipeline, coupled, package, method, statistics)?;
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
    let placement = pipeline.folder().placement().in_f32();
    let weights = &mut outcome.edits.weights;
    for parameter in cuts.parameters() {
        let Some(old) = pipeline.weight(&parameter)? else { continue };
        let cut = cuts.take_out(&parameter, &old.tensor()?)?;
        weights.insert(parameter, cut.into());
    }
    // The error of a layer in a new basis says nothing.
    let told: Vec<LayerName> = coupled
        .iter()
        .zip(&outcome.groups)
        .filter(|(_, outcome)| outcome.error.is_none())
        .flat_map(|(planned, _)| planned.group.outputs())
        .collect();
    for (layer, new) in &removed.weights {
        let weight = new.tensor(&Device::Cpu)?;
        let weight = as_stored(pipeline, &layer.weight(), &placement.bring(&weight)?)?;
        if told.contains(layer) {
            let old = parameter(pipeline, layer)?;
            let (statistics, both) = (layers.statistics(layer)?, (&old, &weight));
            outcome.layers.push(layer_outcome(layer, both, statistics, removed.damping)?);
        }
        weights.insert(layer.weight(), cuts.take_out(&layer.weight(), &weight)?.into());
    }
    for (layer, new) in removed.biases {
        let bias = placement.bring(&Tensor::from_slice(&new, new.len(), &Device::Cpu)?)?;
        let bias = as_stored(pipeline, &layer.bias(), &bias)?;
        weights.insert(layer.bias(), cuts.take_out(&layer.bias(), &bias)?.into());
    }
    Ok(outcome)
}

/// Returns the error of removing each of `counts` from a group: the sum of those that [`remove`]
/// tells.
pub(crate) fn errors(
    pipeline: &Pipeline,
    group: &Group,
    counts: &[usize],
    package: &Package,
    method: &dyn StructuredMethod,
    statistics: &dyn Fn(&SharedInput) -> Result<InputStatistics>,
) -> Result<Vec<f64>> {
    let planned = |remove: usize| [PlannedGroup { group: group.clone(), remove }];
    let layers = Watched::new(pipeline, &planned(0), package, method, statistics)?;
    if let Some(errors) = method.errors(group, counts, &layers)? {
        return Ok(errors);
    }
    let error = |&count: &usize| {
        Ok(remove(pipeline, &planned(count), package, method, statistics)?.error())
    };
    counts.iter().map(error).collect()
}

/// A model, and statistics of some of its layers, with the Hessians where the model is.
struct Watched<'a> {
    pipeline: &'a Pipeline,
    /// By layer, the place of those of its input.
    places: BTreeMap<LayerName, usize>,
    statistics: Vec<InputStatistics>,
}

impl<'a> Watched<'a> {
    /// Of what `method` needs to remove parts of `coupled`.
    fn new(
        pipeline: &'a Pipeline,
        coupled: &[PlannedGroup],
        package: &Package,
        method: &dyn StructuredMethod,
        statistics: &dyn Fn(&SharedInput) -> Result<InputStatistics>,
    ) -> Result<Self> {
        let inputs = package.watched(coupled, &|group| method.watched(group));
        let names = inputs.iter().enumerate().flat_map(|(place, input)| {
            input.layers.iter().map(move |layer| (layer.name.clone(), place))
        });
        let places = names.collect();
        let of_input = |input: &SharedInput| at_the_model(pipeline, &statistics(input)?);
        let statistics = inputs.iter().map(of_input).collect::<Result<_>>()?;
        Ok(Self { pipeline, places, statistics })
    }
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
        let found = self.places.get(layer).map(|&place| &self.statistics[place]);
        found.ok_or_else(|| Error::layer(layer, "its input was not watched"))
    }
}

/// Returns statistics with the Hessian where the model is: saved ones are in memory.
fn at_the_model(pipeline: &Pipeline, statistics: &InputStatistics) -> Result<InputStatistics> {
    let hessian = pipeline.folder().placement().in_f32().bring(&statistics.hessian)?;
    Ok(InputStatistics { hessian, ..statistics.clone() })
}

/// Returns the new values of a parameter as [`Pipeline::as_stored`], if they fit its type.
fn as_stored(pipeline: &Pipeline, parameter: &str, tensor: &Tensor) -> Result<Tensor> {
    let rounded = pipeline.as_stored(parameter, tensor)?;
    match ops::is_finite(&rounded)? {
        true => Ok(rounded),
        false => {
            let dtype = pipeline.folder().checkpoint().tensor(parameter).map(|info| info.dtype);
            let dtype = dtype.map_or_else(String::new, |dtype| format!(" {dtype:?}"));
            Err(Error::layer(&parameter.into(), format!("its new values do not fit{dtype}")))
        }
    }
}

fn layer_outcome(
    layer: &LayerName,
    (old, new): (&Tensor, &Tensor),
    statistics: &InputStatistics,
    damping: f64,
) -> Result<LayerOutcome> {
    let (rows, columns) = old.dims2()?;
    let new = new.to_dtype(DType::F32)?;
    Ok(LayerOutcome {
        name: layer.clone(),
        rows,
        columns,
        zeros: ops::zeros(&new)?,
        error: hessian_error(old, &new, &statistics.hessian)?,
        damping,
        package: 0,
    })
}

/// Returns the weight of a layer: outputs x inputs, in `f32`, where the model is.
fn parameter(pipeline: &Pipeline, layer: &LayerName) -> Result<Tensor> {
    let weight = pipeline.parameter(&layer.weight())?;
    weight.ok_or_else(|| Error::layer(layer, "no weight in the checkpoint"))
}

/// Returns the weight of a layer in memory.
fn read_weight(pipeline: &Pipeline, layer: &LayerName) -> Result<LayerWeight> {
    LayerWeight::read(layer, &parameter(pipeline, layer)?)
}
