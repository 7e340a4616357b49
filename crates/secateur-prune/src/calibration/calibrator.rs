//! An observer of layer inputs while a model runs.

use crate::calibration::moments::{Moments, rows};
use crate::calibration::statistics::PackedStatistics;
use crate::error::Result;
use crate::plan::Package;
use candle_core::{Tensor, TensorId};
use secateur_nn::ops::Rows;
use secateur_nn::{Context, Error as LayerError, LayerName, Probe};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Gathers one Hessian per distinct layer input while a model runs. Layers that read the same
/// tensor share one.
pub struct Calibrator {
    /// Sums by the name of the first planned layer that reads the input.
    moments: BTreeMap<LayerName, (LayerName, Mutex<Moments>)>,
    weights: Vec<f64>,
    /// One of every `stride` tokens is summed, and stands for all of them.
    stride: usize,
    /// The rows that are summed at the current step: many inputs have the same.
    rows: Mutex<Vec<(RowsOf, Arc<Rows>)>>,
}

/// What rows depend on: the step, samples and tokens, and their multiplicity.
#[derive(Clone, Copy, PartialEq)]
struct RowsOf {
    step: usize,
    shape: (usize, usize),
    multiplicity: Option<TensorId>,
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
                (input.name.clone(), Mutex::new(Moments::new(first.columns))),
            ))
        };
        let moments = package.watched_inputs().filter_map(moments).collect();
        Self { moments, weights, stride: stride.max(1), rows: Mutex::default() }
    }

    /// The rows of an input of samples x tokens rows that are summed at a step.
    fn rows_of(
        &self,
        step: usize,
        shape: (usize, usize),
        multiplicity: Option<&Tensor>,
    ) -> Result<Arc<Rows>> {
        let of = RowsOf { step, shape, multiplicity: multiplicity.map(Tensor::id) };
        let mut known = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, rows)) = known.iter().find(|(own, _)| *own == of) {
            return Ok(Arc::clone(rows));
        }
        known.retain(|(own, _)| own.step == step);
        let multiplicity =
            multiplicity.map(|tensor| tensor.flatten_all()?.to_vec1::<f32>()).transpose()?;
        let rows = Arc::new(rows(shape, multiplicity.as_deref(), (self.stride, step))?);
        known.push((of, Arc::clone(&rows)));
        Ok(rows)
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
    pub fn finish(self) -> Result<BTreeMap<LayerName, PackedStatistics>> {
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
        let mut moments = lock(moments);
        let samples = x.dim(0)?;
        let tokens = x.elem_count() / (moments.width() * samples).max(1);
        let is_finite = self
            .rows_of(step.index, (samples, tokens), context.multiplicity)
            .and_then(|rows| moments.add(x, &rows, weight))
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
