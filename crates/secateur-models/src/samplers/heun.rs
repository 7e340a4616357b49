//! HeunDiscrete: Karras et al. 2022, <https://arxiv.org/abs/2206.00364>, algorithm 1. Each step but
//! the last calls the model twice: where it starts, and where an Euler step from there leads.

use crate::error::Result;
use crate::samplers::exploding::{Exploding, Karras, Levels};
use crate::samplers::options::Options;
use crate::samplers::prediction::{Limit, Prediction, combine};
use crate::samplers::schedule::{Call, Run, Schedule, SchedulerConfig};
use crate::samplers::training::Level;
use candle_core::Tensor;

/// Configuration of a `HeunDiscreteScheduler`.
#[derive(Clone, Debug)]
pub(crate) struct HeunConfig {
    shared: Exploding,
    limit: Limit,
}

/// One run.
#[derive(Clone, Debug)]
struct Heun {
    levels: Levels,
    calls: Vec<Call>,
    limit: Limit,
    /// Between the two calls of a step: the latents where it starts, and the direction there.
    start: Option<(Tensor, Tensor)>,
}

impl HeunConfig {
    pub(crate) fn read(options: &Options) -> Result<Self> {
        options.off(&["use_exponential_sigmas", "use_beta_sigmas"])?;
        let known = [Prediction::Noise, Prediction::Image, Prediction::Velocity];
        let mut shared = Exploding::read(options, (0.00085, 0.012), false, &known)?;
        shared.karras = options.flag("use_karras_sigmas", false)?.then(Karras::default);
        Ok(Self { shared, limit: Limit::clip(options, false)? })
    }
}

impl SchedulerConfig for HeunConfig {
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>> {
        let levels = self.shared.levels(run)?;
        let call = |call| Call { timestep: levels.timesteps[level_of(call)], step: call / 2 };
        let calls = (0..2 * run.steps - 1).map(call).collect();
        Ok(Box::new(Heun { levels, calls, limit: self.limit, start: None }))
    }

    fn trained(&self, timestep: f32) -> Result<(Prediction, Level)> {
        Ok(self.shared.trained(timestep))
    }
}

impl Heun {
    /// The direction of the latents at a level, as sigma grows.
    fn direction(&self, level: usize, latents: &Tensor, output: &Tensor) -> Result<Tensor> {
        if matches!(self.limit, Limit::None) {
            return self.levels.noise(level).of(latents, output);
        }
        let image = self.limit.of(self.levels.image(level)?.of(latents, output)?)?;
        let sigma = self.levels.sigmas[level];
        combine((1.0 / sigma, latents), &[(-1.0 / sigma, &image)])
    }
}

impl Schedule for Heun {
    fn calls(&self) -> &[Call] {
        &self.calls
    }

    fn initial_scale(&self) -> f64 {
        self.levels.initial_scale
    }

    fn scale_input(&self, call: usize, latents: &Tensor) -> Result<Tensor> {
        self.levels.scale_input(level_of(call), latents)
    }

    fn step(
        &mut self,
        call: usize,
        latents: &Tensor,
        output: &Tensor,
        _: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let direction = self.direction(level_of(call), latents, output)?;
        let change = self.levels.sigmas[call / 2 + 1] - self.levels.sigmas[call / 2];
        match self.start.take() {
            None => {
                let next = combine((1.0, latents), &[(change, &direction)])?;
                self.start = Some((latents.clone(), direction));
                Ok(next)
            }
            Some((start, first)) => {
                combine((1.0, &start), &[(change / 2.0, &first), (change / 2.0, &direction)])
            }
        }
    }

    fn memory(&self) -> Option<Vec<Tensor>> {
        self.start.is_none().then(Vec::new)
    }
}

/// The noise level that a call is made at; a step's second call is made at the next step's level.
fn level_of(call: usize) -> usize {
    call.div_ceil(2)
}
