//! Running the model to see its activations.

use crate::error::Result;
use crate::measured::measure;
use crate::plan::Package;
use crate::statistics::{Accumulator, InputStatistics};
use crate::weighting::Weighting;
use candle_core::{Storage, Tensor};
use secateur_models::{Observer, Pipeline, Sampling};
use secateur_nn::{Context, Error as LayerError, LayerName, Probe};
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

/// What the model is run on, and how much each step counts.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// One image a prompt.
    pub prompts: Vec<String>,
    /// Steps, guidance, seed and batch.
    pub sampling: Sampling,
    /// Weights of the steps.
    pub weighting: Weighting,
    /// One of every so many tokens is summed up into the Hessians, for all of them: 1 sums up all. Tokens of one image
    /// say much the same, and products of them are a good part of a calibration's time.
    pub token_stride: usize,
}

impl Calibration {
    /// The weights of the steps, the noisiest first: given, or measured on the model, which is the same afterwards.
    ///
    /// # Errors
    /// If the model fails or the observer interrupts.
    pub fn step_weights(&self, pipeline: &mut Pipeline, observer: &dyn Observer) -> Result<Vec<f64>> {
        match self.weighting.weights(self.sampling.steps) {
            Some(weights) => Ok(weights),
            None => measure(pipeline, self, observer),
        }
    }
}

/// Gathers one Hessian per distinct layer input while a model runs.
pub struct Calibrator {
    /// By the first of the planned layers that reads the input.
    accumulators: HashMap<LayerName, (LayerName, Mutex<Accumulator>)>,
    weights: Vec<f64>,
}

impl Calibrator {
    /// For the inputs that a package watches; `weights` are those of the denoising steps. One of every `stride` tokens is summed
    /// up, for all of them.
    #[must_use]
    pub fn new(package: &Package, weights: Vec<f64>, stride: usize) -> Self {
        let accumulator = |input: &crate::plan::SharedInput| {
            let first = input.layers.first()?;
            Some((first.name.clone(), (input.name.clone(), Mutex::new(Accumulator::new(first.columns, stride.max(1))))))
        };
        Self { accumulators: package.watched_inputs().filter_map(accumulator).collect(), weights }
    }

    /// The statistics, by the name of the input.
    #[must_use]
    pub fn finish(self) -> BTreeMap<LayerName, InputStatistics> {
        let finish = |(name, accumulator): (LayerName, Mutex<Accumulator>)| {
            let accumulator = accumulator.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            (name, accumulator.finish())
        };
        self.accumulators.into_values().map(finish).collect()
    }
}

impl Probe for Calibrator {
    fn linear_input(&self, layer: &LayerName, x: &Tensor, context: &Context<'_>) -> secateur_nn::Result<()> {
        let step = context.step;
        let Some((_, accumulator)) = self.accumulators.get(layer) else { return Ok(()) };
        let problem = |problem: String| LayerError::Layer { layer: layer.clone(), problem };
        // The weight follows the denoising step, however often a sampler calls the model in it.
        let Some(&weight) = self.weights.get(step.index) else {
            return Err(problem(format!("no weight for step {} of {}", step.index + 1, step.count)));
        };
        let samples = x.dim(0)?;
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            return Err(problem("calibration runs on the CPU".into()));
        };
        let mut accumulator = accumulator.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        accumulator.add(&storage.as_slice::<f32>()?[start..end], samples, context.multiplicity, (step.index, weight));
        if !accumulator.is_finite() {
            let step = step.index + 1;
            return Err(problem(format!("its input holds NaN or infinite values at denoising step {step}")));
        }
        Ok(())
    }
}

/// Runs the whole denoising over all prompts and gathers the statistics of a package.
pub(crate) fn calibrate(
    pipeline: &Pipeline,
    package: &Package,
    calibration: &Calibration,
    step_weights: &[f64],
    observer: &dyn Observer,
) -> Result<BTreeMap<LayerName, InputStatistics>> {
    let sampling = &calibration.sampling;
    let calibrator = Calibrator::new(package, step_weights.to_vec(), calibration.token_stride);
    for images in sampling.batches(calibration.prompts.len()) {
        pipeline.sample(&calibration.prompts, images, sampling, Some(&calibrator), observer)?;
    }
    Ok(calibrator.finish())
}
