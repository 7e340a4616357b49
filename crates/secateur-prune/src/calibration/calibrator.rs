//! An observer of layer inputs while a model runs.

use crate::calibration::moments::Moments;
use crate::calibration::statistics::InputStatistics;
use crate::error::Result;
use crate::plan::Package;
use candle_core::{Tensor, TensorId};
use secateur_nn::{Context, Error as LayerError, LayerName, Probe};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Gathers one Hessian per distinct layer input while a model runs. Layers that read the same
/// tensor share one.
pub struct Calibrator {
    /// Sums by the name of the first planned layer that reads the input.
    moments: BTreeMap<LayerName, (LayerName, Mutex<Moments>)>,
    weights: Vec<f64>,
    /// The multiplicity that was last read from its device: many layers have the same.
    multiplicity: Mutex<Option<(TensorId, Arc<[f32]>)>>,
}

const NOT_FINITE: &str = "its input holds NaN or infinite values";

impl Calibrator {
    /// Creates a calibrator for the inputs that `package` watches. `weights` has one weight for
    /// each denoising step. One of every `stride` tokens is summed, and stands for all of them.
    #[must_use]
    pub fn new(package: &Package, weights: Vec<f64>, stride: usize) -> Self {
        let moments = |input: &crate::plan::SharedInput| {
            let first = input.layers.first()?;
            Some((
                first.name.clone(),
                (input.name.clone(), Mutex::new(Moments::new(first.columns, stride.max(1)))),
            ))
        };
        let moments = package.watched_inputs().filter_map(moments).collect();
        Self { moments, weights, multiplicity: Mutex::default() }
    }

    fn multiplicity_of(&self, tensor: &Tensor) -> candle_core::Result<Arc<[f32]>> {
        let mut last = self.multiplicity.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((id, numbers)) if *id == tensor.id() => Ok(Arc::clone(numbers)),
            _ => {
                let numbers = Arc::from(tensor.flatten_all()?.to_vec1::<f32>()?);
                *last = Some((tensor.id(), Arc::clone(&numbers)));
                Ok(numbers)
            }
        }
    }

    /// The sums of each input, for reading.
    pub(crate) fn moments(&self) -> impl Iterator<Item = (&LayerName, MutexGuard<'_, Moments>)> {
        self.moments.values().map(|(name, moments)| (name, lock(moments)))
    }

    /// The sums of each input.
    pub(crate) fn moments_mut(&mut self) -> impl Iterator<Item = (&LayerName, &mut Moments)> {
        self.moments.values_mut().map(|(name, moments)| {
            (&*name, moments.get_mut().unwrap_or_else(PoisonError::into_inner))
        })
    }

    /// Sets the sums named `array` of an input. Returns whether there are sums of that name and
    /// length.
    pub(crate) fn set(&mut self, input: &str, array: &str, values: &Tensor) -> Result<bool> {
        let found = self.moments_mut().find(|(name, _)| name.as_str() == input);
        Ok(found.map(|(_, moments)| moments.set(array, values)).transpose()?.unwrap_or(false))
    }

    /// Resets all sums to zero.
    pub(crate) fn clear(&mut self) {
        self.moments_mut().for_each(|(_, moments)| moments.clear());
    }

    /// The weights of the denoising steps.
    pub(crate) fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// Refuses inputs that were not finite.
    ///
    /// # Errors
    /// One such layer, if there are any: the first by its name.
    pub fn check(&self) -> Result<()> {
        for (layer, (_, moments)) in &self.moments {
            if !lock(moments).is_finite()? {
                let problem = NOT_FINITE.to_owned();
                return Err(LayerError::Layer { layer: layer.clone(), problem }.into());
            }
        }
        Ok(())
    }

    /// Returns the statistics by the name of the input.
    ///
    /// # Errors
    /// If the sums cannot be read from the device.
    pub fn finish(self) -> Result<BTreeMap<LayerName, InputStatistics>> {
        let finish = |(name, moments): (LayerName, Mutex<Moments>)| {
            let moments = moments.into_inner().unwrap_or_else(PoisonError::into_inner);
            Ok((name, moments.finish()?))
        };
        self.moments.into_values().map(finish).collect()
    }
}

impl Probe for Calibrator {
    fn linear_input(
        &self,
        layer: &LayerName,
        x: &Tensor,
        context: &Context<'_>,
    ) -> secateur_nn::Result<()> {
        let step = context.step;
        let Some((_, moments)) = self.moments.get(layer) else { return Ok(()) };
        let problem = |problem: String| LayerError::Layer { layer: layer.clone(), problem };
        // The weight follows the denoising step, however often a sampler calls the model in it.
        let Some(&weight) = self.weights.get(step.index) else {
            return Err(problem(format!(
                "no weight for step {} of {}",
                step.index + 1,
                step.count
            )));
        };
        let multiplicity = context.multiplicity.map(|m| self.multiplicity_of(m)).transpose()?;
        let is_finite = lock(moments)
            .add(x, multiplicity.as_deref(), (step.index, weight))
            .map_err(|error| problem(error.to_string()))?;
        match is_finite {
            true => Ok(()),
            false => Err(problem(format!("{NOT_FINITE} at denoising step {}", step.index + 1))),
        }
    }
}

fn lock(moments: &Mutex<Moments>) -> MutexGuard<'_, Moments> {
    moments.lock().unwrap_or_else(PoisonError::into_inner)
}
