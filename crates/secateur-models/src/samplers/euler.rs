//! EulerDiscrete: Karras et al. 2022, <https://arxiv.org/abs/2206.00364>, algorithm 2 without
//! churn. EulerAncestralDiscrete: Euler steps to below the next noise level, and as much noise as
//! leads back to it; from k-diffusion's `sample_euler_ancestral`, as diffusers has it.

use crate::error::Result;
use crate::samplers::exploding::{Exploding, Karras, Levels};
use crate::samplers::options::Options;
use crate::samplers::prediction::{Prediction, combine};
use crate::samplers::schedule::{Call, Run, Schedule, SchedulerConfig};
use crate::samplers::sigmas::Final;
use crate::samplers::training::Level;
use candle_core::Tensor;

/// Configuration of an `EulerDiscreteScheduler` or an `EulerAncestralDiscreteScheduler`.
#[derive(Clone, Debug)]
pub(crate) struct EulerConfig {
    shared: Exploding,
    ancestral: bool,
}

/// One run.
#[derive(Clone, Debug)]
struct Euler {
    levels: Levels,
    calls: Vec<Call>,
    /// Whether steps go below the next noise level, and noise is added.
    ancestral: bool,
}

impl EulerConfig {
    pub(crate) fn read(options: &Options) -> Result<Self> {
        options.off(&["use_exponential_sigmas", "use_beta_sigmas"])?;
        options.only("interpolation_type", "linear")?;
        options.only("timestep_type", "discrete")?;
        let known = [Prediction::Noise, Prediction::Image, Prediction::Velocity];
        let zero_snr = options.flag("rescale_betas_zero_snr", false)?;
        let mut shared = Exploding::read(options, (0.0001, 0.02), zero_snr, &known)?;
        let bound = |name| {
            options.get::<Option<f64>>(name, None)?.map(|_| options.positive(name, 1.0)).transpose()
        };
        let bounds = Karras { least: bound("sigma_min")?, most: bound("sigma_max")? };
        shared.karras = options.flag("use_karras_sigmas", false)?.then_some(bounds);
        shared.last = options.get("final_sigmas_type", Final::Zero)?;
        Ok(Self { shared, ancestral: false })
    }

    pub(crate) fn read_ancestral(options: &Options) -> Result<Self> {
        let zero_snr = options.flag("rescale_betas_zero_snr", false)?;
        let known = [Prediction::Noise, Prediction::Velocity];
        let shared = Exploding::read(options, (0.0001, 0.02), zero_snr, &known)?;
        Ok(Self { shared, ancestral: true })
    }
}

impl SchedulerConfig for EulerConfig {
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>> {
        let levels = self.shared.levels(run)?;
        Ok(Box::new(Euler { calls: levels.calls(), levels, ancestral: self.ancestral }))
    }

    fn trained(&self, timestep: f32) -> Result<(Prediction, Level)> {
        Ok(self.shared.trained(timestep))
    }
}

impl Schedule for Euler {
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
        let down = if self.ancestral { to * to / from } else { to };
        let up = (to * to - down * down).max(0.0).sqrt();
        let latents = self.levels.euler(call, down).of(latents, output)?;
        if up == 0.0 { Ok(latents) } else { combine((1.0, &latents), &[(up, &noise()?)]) }
    }
}
