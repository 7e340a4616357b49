//! The error of a whole attention, after the softmax, when its projections change.

use crate::calibration::Calibration;
use crate::error::{Error, Result};
use crate::run::influence::influence_sampling;
use candle_core::Tensor;
use secateur_kernels::Panels;
use secateur_kernels::linear::linear;
use secateur_models::{Observer, Pipeline, Sampling};
use secateur_nn::{Context, LayerName, Placement, Probe};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// A picture that is drawn several times in a few steps. The model gets the same latents every
/// time. So the inputs of a module stay the same while only the module itself, or a later one,
/// changes.
pub struct ModuleErrors {
    prompts: Vec<String>,
    sampling: Sampling,
    /// Outputs of the unchanged model, one per call.
    outputs: Vec<Tensor>,
}

/// Rows of each layer's output that are compared, per call.
const ROWS: usize = 64;

/// Outputs of layers, row-major.
type Outputs = BTreeMap<LayerName, Vec<f32>>;

impl ModuleErrors {
    /// Draws the first calibration prompt with the unchanged model.
    ///
    /// # Errors
    /// If the model fails, or the observer interrupts.
    pub fn new(
        pipeline: &Pipeline,
        calibration: &Calibration,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let (prompts, sampling) =
            (calibration.prompts[..1].to_vec(), influence_sampling(calibration));
        observer.begin("draw for the modules' errors", sampling.steps, "image steps");
        let mut outputs = Vec::new();
        pipeline.sample_with(&prompts, 0..1, &sampling, None, observer, |_, _, output| {
            outputs.push(output.clone());
            Ok(())
        })?;
        Ok(Self { prompts, sampling, outputs })
    }

    /// Returns the outputs of `layers` in the model as it is now.
    pub(crate) fn outputs(
        &self,
        pipeline: &Pipeline,
        layers: &BTreeSet<LayerName>,
    ) -> Result<Outputs> {
        let inputs = Inputs { layers, rows: Mutex::default() };
        pipeline.sample_with(
            &self.prompts,
            0..1,
            &self.sampling,
            Some(&inputs),
            &(),
            |call, _, output| {
                *output = self.outputs[call].clone();
                Ok(())
            },
        )?;
        let rows = inputs.rows.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        rows.into_iter()
            .map(|(layer, x)| {
                let weight = pipeline.parameter(&layer.weight())?;
                let weight =
                    weight.ok_or_else(|| Error::layer(&layer, "no weight in the checkpoint"))?;
                let ((outputs, inputs), values) =
                    (weight.dims2()?, weight.flatten_all()?.to_vec1::<f32>()?);
                let bias = pipeline.parameter(&layer.bias())?;
                let bias = bias.map(|bias| bias.to_vec1::<f32>()).transpose()?;
                let mut y = vec![0f32; x.len() / inputs.max(1) * outputs];
                linear(&x, &Panels::transposed(&values, inputs), bias.as_deref(), None, &mut y);
                Ok((layer, y))
            })
            .collect()
    }
}

/// Returns || Y' - Y ||_F^2 / || Y ||_F^2 over all layers.
pub(crate) fn relative(before: &Outputs, after: &Outputs) -> f64 {
    let pairs =
        || before.iter().filter_map(|(layer, y)| Some(y.iter().zip(after.get(layer)?))).flatten();
    let total: f64 = pairs().map(|(y, _)| f64::from(*y).powi(2)).sum();
    let difference: f64 =
        pairs().map(|(y, changed)| (f64::from(*changed) - f64::from(*y)).powi(2)).sum();
    if total > 0.0 { difference / total } else { 0.0 }
}

/// An observer that records some rows of the inputs of some layers.
struct Inputs<'a> {
    layers: &'a BTreeSet<LayerName>,
    rows: Mutex<BTreeMap<LayerName, Vec<f32>>>,
}

impl Probe for Inputs<'_> {
    fn linear_input(
        &self,
        layer: &LayerName,
        x: &Tensor,
        _: &Context<'_>,
    ) -> secateur_nn::Result<()> {
        if !self.layers.contains(layer) {
            return Ok(());
        }
        let x = x.flatten_to(candle_core::D::Minus2)?;
        let stride = x.dim(0)?.div_ceil(ROWS).max(1);
        let mut rows = self.rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let kept = rows.entry(layer.clone()).or_default();
        let x = Placement::cpu().bring(&x)?;
        for row in x.to_vec2::<f32>()?.into_iter().step_by(stride) {
            kept.extend(row);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Outputs, relative};

    #[test]
    fn squares_of_all_layers_are_put_together() {
        let outputs = |a: &[f32], b: &[f32]| {
            Outputs::from([("a".into(), a.to_vec()), ("b".into(), b.to_vec())])
        };
        let before = outputs(&[1.0, 2.0], &[-3.0]);
        // Off by 1, 0 and 2, of 1 + 4 + 9 in all.
        assert!((relative(&before, &outputs(&[2.0, 2.0], &[-1.0])) - 5.0 / 14.0).abs() < 1e-12);
        assert_eq!(relative(&before, &before), 0.0);
        assert_eq!(relative(&outputs(&[0.0], &[0.0]), &outputs(&[1.0], &[1.0])), 0.0);
    }
}
