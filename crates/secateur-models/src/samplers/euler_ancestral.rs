//! EulerAncestralDiscrete: Euler steps to below the next noise level, and as much noise as leads
//! back to it; from k-diffusion's `sample_euler_ancestral`, as diffusers has it.

use crate::error::Result;
use crate::samplers::exploding::{Exploding, Levels};
use crate::samplers::options::Options;
use crate::samplers::prediction::{Prediction, combine};
use crate::samplers::schedule::{Call, Run, Schedule, SchedulerConfig};
use candle_core::Tensor;

/// Configuration of an `EulerAncestralDiscreteScheduler`.
#[derive(Clone, Debug)]
pub(crate) struct EulerAncestralConfig(Exploding);

/// One run.
#[derive(Clone, Debug)]
struct EulerAncestral {
    levels: Levels,
    calls: Vec<Call>,
}

impl EulerAncestralConfig {
    pub(crate) fn read(options: &Options) -> Result<Self> {
        let zero_snr = options.flag("rescale_betas_zero_snr", false)?;
        let known = [Prediction::Noise, Prediction::Velocity];
        Ok(Self(Exploding::read(options, (0.0001, 0.02), zero_snr, &known)?))
    }
}

impl SchedulerConfig for EulerAncestralConfig {
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>> {
        let levels = self.0.levels(run)?;
        Ok(Box::new(EulerAncestral { calls: levels.calls(), levels }))
    }

    fn training_pair(
        &self,
        timestep: f32,
        clean: &Tensor,
        noise: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        self.0.training_pair(timestep, clean, noise)
    }
}

impl Schedule for EulerAncestral {
    fn calls(&self) -> &[Call] {
        &self.calls
    }

    fn initial_scale(&self) -> f64 {
        self.levels.initial_scale
    }

    fn scale_input(&self, call: usize, latents: &Tensor) -> Result<Tensor> {
        self.levels.scale_input(call, latents)
    }

    fn step(
        &mut self,
        call: usize,
        latents: &Tensor,
        output: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (from, to) = (self.levels.sigmas[call], self.levels.sigmas[call + 1]);
        let down = to * to / from;
        let up = (to * to - down * down).max(0.0).sqrt();
        let latents = self.levels.euler(call, down).of(latents, output)?;
        if up == 0.0 { Ok(latents) } else { combine((1.0, &latents), &[(up, &noise()?)]) }
    }
}
