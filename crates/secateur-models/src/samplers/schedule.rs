//! A run of a sampler: its calls of the model, and what becomes of the latents.

use crate::error::{Error, Result};
use candle_core::Tensor;
use std::fmt::Debug;

/// One call of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// the timestep given to the model.
    pub timestep: f32,
    /// The step of the sampler that it belongs to; some samplers call the model more than once a
    /// step.
    pub step: usize,
}

/// What is asked of a sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Denoising steps.
    pub steps: usize,
    /// Image tokens of the denoiser, on which FLUX's shift of the noise levels depends.
    pub tokens: usize,
    /// Noise levels evenly spread from 1 to 1 / steps before any shift, as FLUX's pipeline wants
    /// them, in place of the scheduler's own spread. Only for samplers of flow models.
    pub even_levels: bool,
}

/// No sampler takes more steps.
pub(crate) const MOST_STEPS: usize = 1_000_000;

impl Run {
    pub(crate) fn check(self) -> Result<()> {
        match self.steps {
            0 => Err(Error::Request("the number of steps must be at least 1".into())),
            1..=MOST_STEPS => Ok(()),
            steps => Err(Error::Request(format!(
                "{steps} steps are more than any model wants, {MOST_STEPS}"
            ))),
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
            let problem = format!(
                "{} steps are more than the {trained} timesteps of the training",
                self.steps
            );
            return Err(Error::Request(problem));
        }
        Ok(self.steps)
    }
}

/// The configuration of a sampler.
pub trait SchedulerConfig: Debug + Send + Sync {
    /// One run.
    ///
    /// # Errors
    /// If it cannot make that many steps.
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>>;

    /// What the model was trained on at `timestep`: the latents `clean` with so much of the
    /// standard normal `noise`, and what the model should give for them.
    ///
    /// # Errors
    /// If the timestep is beyond the training, or the shapes differ.
    fn training_pair(
        &self,
        timestep: f32,
        clean: &Tensor,
        noise: &Tensor,
    ) -> Result<(Tensor, Tensor)>;
}

/// What can go on twice from the same moment.
pub trait Fork {
    /// Another one that remembers the same.
    fn fork(&self) -> Box<dyn Schedule>;
}

impl<S: Schedule + Clone + 'static> Fork for S {
    fn fork(&self) -> Box<dyn Schedule> {
        Box::new(self.clone())
    }
}

/// One run of a sampler, with what it remembers of earlier calls. All that is done to latents is
/// differentiable.
pub trait Schedule: Fork {
    /// The calls of the model, in order.
    fn calls(&self) -> &[Call];

    /// What standard normal noise is multiplied by to start with (diffusers' `init_noise_sigma`).
    fn initial_scale(&self) -> f64 {
        1.0
    }

    /// What the model is given in place of the latents at a call (diffusers' `scale_model_input`).
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn scale_input(&self, call: usize, latents: &Tensor) -> Result<Tensor> {
        let _ = call;
        Ok(latents.clone())
    }

    /// The latents after a call, from those before it and what the model gave. `noise` draws
    /// standard normal noise in the latents' shape, anew each time it is called.
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
}

/// The calls of a sampler that calls the model once a step.
pub(crate) fn one_call_a_step(timesteps: impl IntoIterator<Item = f32>) -> Vec<Call> {
    timesteps.into_iter().enumerate().map(|(step, timestep)| Call { timestep, step }).collect()
}
