//! The interface of samplers: the calls of the model, and the updates of the latents.

use crate::error::{Error, Result, refuse};
use crate::samplers::prediction::Prediction;
use crate::samplers::training::Level;
use candle_core::Tensor;
use std::fmt::Debug;

/// One call of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// The timestep passed to the model.
    pub timestep: f32,
    /// Index of the sampler's step. Some samplers call the model several times a step.
    pub step: usize,
}

/// The settings of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Denoising steps.
    pub steps: usize,
    /// Number of image tokens of the denoiser, from which FLUX derives the shift of its noise
    /// levels.
    pub tokens: usize,
    /// Whether the noise levels before the shift are spread evenly from 1 to 1 / steps, as in
    /// FLUX's pipeline, and not as the scheduler says. Only for samplers of flow models.
    pub even_levels: bool,
}

/// No sampler takes more steps.
pub(crate) const MOST_STEPS: usize = 1_000_000;

impl Run {
    pub(crate) fn check(self) -> Result<()> {
        match self.steps {
            0 => refuse!("the number of steps must be at least 1"),
            1..=MOST_STEPS => Ok(()),
            steps => refuse!("{steps} steps are more than any model wants, {MOST_STEPS}"),
        }
    }

    /// The number of steps for a model that was trained at `trained` timesteps.
    pub(crate) fn of_trained(self, trained: usize) -> Result<usize> {
        self.check()?;
        if self.even_levels {
            return Err(Error::Request(
                "evenly spread noise levels are for samplers of flow models only".into(),
            ));
        }
        if self.steps > trained {
            refuse!("{} steps are more than the {trained} timesteps of the training", self.steps);
        }
        Ok(self.steps)
    }
}

/// The configuration of a sampler.
pub trait SchedulerConfig: Debug + Send + Sync {
    /// Plans a run.
    ///
    /// # Errors
    /// If the sampler cannot make that number of steps.
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>>;

    /// What the model predicts, and the level of the noise at `timestep` in training.
    ///
    /// # Errors
    /// If the timestep is beyond the training.
    fn trained(&self, timestep: f32) -> Result<(Prediction, Level)>;

    /// The model's input and target in training at `timestep`: the latents `clean` mixed with
    /// standard normal `noise`, and the output that the model should give for them.
    ///
    /// # Errors
    /// If the timestep is beyond the training, or the shapes differ.
    fn training_pair(
        &self,
        timestep: f32,
        clean: &Tensor,
        noise: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (prediction, level) = self.trained(timestep)?;
        prediction.pair(level, clean, noise)
    }
}

/// A run that can be copied, to go on in two ways.
pub trait Fork {
    /// Copies the run with all that it remembers.
    fn fork(&self) -> Box<dyn Schedule>;
}

impl<S: Schedule + Clone + 'static> Fork for S {
    fn fork(&self) -> Box<dyn Schedule> {
        Box::new(self.clone())
    }
}

/// One run of a sampler, with what it remembers of earlier calls. All its operations on latents are
/// differentiable.
pub trait Schedule: Fork {
    /// The calls of the model, in order.
    fn calls(&self) -> &[Call];

    /// Factor of the standard normal noise that a run starts with (diffusers' `init_noise_sigma`).
    fn initial_scale(&self) -> f64 {
        1.0
    }

    /// The model's input at a call, from the latents (diffusers' `scale_model_input`).
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn scale_input(&self, call: usize, latents: &Tensor) -> Result<Tensor> {
        let _ = call;
        Ok(latents.clone())
    }

    /// The latents after a call, from the latents before it and the model's output. `noise` draws
    /// new standard normal noise of the latents' shape at each use.
    ///
    /// # Errors
    /// If the shapes differ.
    fn step(
        &mut self,
        call: usize,
        latents: &Tensor,
        output: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor>;

    /// What the next steps need of the calls so far; `None` amid calls that belong together.
    fn memory(&self) -> Option<Vec<Tensor>> {
        Some(Vec::new())
    }

    /// Sets what [`Schedule::memory`] gave.
    fn remember(&mut self, memory: Vec<Tensor>) {
        let _ = memory;
    }
}

/// The calls of a sampler that calls the model once a step.
pub(crate) fn one_call_a_step(timesteps: impl IntoIterator<Item = f32>) -> Vec<Call> {
    timesteps.into_iter().enumerate().map(|(step, timestep)| Call { timestep, step }).collect()
}
