//! Running the model to see its activations.

use crate::error::Result;
use crate::measured::measure;
use crate::plan::Package;
use crate::statistics::{Accumulator, InputStatistics};
use crate::sums::{Keeper, Sums};
use crate::weighting::Weighting;
use candle_core::{Storage, Tensor};
use secateur_models::{Observer, Pipeline, Sampling};
use secateur_nn::{Context, Error as LayerError, LayerName, Probe};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};

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

    /// The sums of each input.
    pub(crate) fn accumulators_mut(&mut self) -> impl Iterator<Item = (&LayerName, &mut Accumulator)> {
        self.accumulators.values_mut().map(|(name, accumulator)| {
            (&*name, accumulator.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner))
        })
    }

    /// Sets some sums of an input; whether there are any of that name and length.
    pub(crate) fn set(&mut self, input: &str, array: &str, values: &Tensor) -> Result<bool> {
        let found = self.accumulators_mut().find(|(name, _)| name.as_str() == input);
        Ok(found.map(|(_, accumulator)| accumulator.set(array, values)).transpose()?.unwrap_or(false))
    }

    /// Forgets all sums.
    pub(crate) fn clear(&mut self) {
        self.accumulators_mut().for_each(|(_, accumulator)| accumulator.clear());
    }

    /// Those of the steps.
    pub(crate) fn weights(&self) -> &[f64] {
        &self.weights
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

/// Runs the whole denoising over all prompts and gathers the statistics of a package. It goes on
/// from `sums`, and keeps its own there: every minute at a batch's end, and when the observer
/// interrupts.
pub(crate) fn calibrate(
    pipeline: &Pipeline,
    package: &Package,
    calibration: &Calibration,
    step_weights: &[f64],
    sums: Option<Sums<'_>>,
    stage: &str,
    observer: &dyn Observer,
) -> Result<BTreeMap<LayerName, InputStatistics>> {
    let Calibration { prompts, sampling, .. } = calibration;
    let mut calibrator = Calibrator::new(package, step_weights.to_vec(), calibration.token_stride);
    let done = sums.as_ref().map_or(Ok(0), |sums| sums.load(&mut calibrator, observer))?;
    observer.begin(stage, (prompts.len() - done.min(prompts.len())) * sampling.steps, "image steps");
    let mut keeper = Keeper::new(sums);
    let mut time = None;
    for images in sampling.batches(prompts.len()).filter(|images| images.start >= done) {
        let (start, end) = (Instant::now(), images.end);
        let batch = Batch { observer, end: time.map(|time| start + time), stopped: Cell::new(false) };
        pipeline.sample(prompts, images, sampling, Some(&calibrator), &batch)?;
        keeper.batch(&mut calibrator, end, batch.stopped.get(), observer);
        // Whoever interrupted does so again.
        observer.advance(0)?;
        time = Some(start.elapsed());
    }
    Ok(calibrator.finish())
}

/// An interruption waits so long for the end of the batch.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets a batch that is nearly done come to its end, as sums are kept between batches.
struct Batch<'a> {
    observer: &'a dyn Observer,
    /// When it should come to its end, by the one before.
    end: Option<Instant>,
    stopped: Cell<bool>,
}

impl Observer for Batch<'_> {
    fn advance(&self, amount: usize) -> secateur_models::Result<()> {
        let told = self.observer.advance(amount);
        let now = Instant::now();
        let soon = self.end.is_some_and(|end| now < end + PATIENCE && end < now + PATIENCE);
        if told.is_err() && soon {
            self.stopped.set(true);
            return Ok(());
        }
        told
    }

    fn tell(&self, state: &str) {
        self.observer.tell(state);
    }

    fn warn(&self, text: &str) {
        self.observer.warn(text);
    }
}
