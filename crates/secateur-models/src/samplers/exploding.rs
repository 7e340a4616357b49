//! The parts that the Euler and Heun samplers share. Their latents are x0 + sigma e, whose variance
//! explodes (Karras et al. 2022, <https://arxiv.org/abs/2206.00364>). The models were trained with
//! latents of constant variance.

use crate::error::{Result, refuse};
use crate::samplers::options::Options;
use crate::samplers::prediction::{Mix, Prediction};
use crate::samplers::schedule::{Call, Run, one_call_a_step};
use crate::samplers::sigmas::{Final, Sigmas, karras};
use crate::samplers::spacing::{Spacing, Spread};
use crate::samplers::training::Level;
use candle_core::Tensor;

/// Configuration.
#[derive(Clone, Debug)]
pub(crate) struct Exploding {
    pub(crate) sigmas: Sigmas,
    pub(crate) spacing: Spacing,
    pub(crate) prediction: Prediction,
    pub(crate) karras: Option<Karras>,
    pub(crate) last: Final,
}

/// Bounds of the Karras levels; by default the levels at the first and last timestep of the run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Karras {
    pub(crate) least: Option<f64>,
    pub(crate) most: Option<f64>,
}

/// The noise levels of a run.
#[derive(Clone, Debug)]
pub(crate) struct Levels {
    /// Steps + 1 of them, falling.
    pub(crate) sigmas: Vec<f64>,
    pub(crate) timesteps: Vec<f32>,
    pub(crate) prediction: Prediction,
    /// Factor of the initial noise.
    pub(crate) initial_scale: f64,
}

impl Exploding {
    /// Reads what all of them have, with the defaults of `beta_start` and `beta_end`; there are no
    /// Karras levels.
    pub(crate) fn read(
        options: &Options,
        betas: (f64, f64),
        zero_snr: bool,
        known: &[Prediction],
    ) -> Result<Self> {
        Ok(Self {
            sigmas: Sigmas::read(options, betas, zero_snr)?,
            spacing: Spacing::read(options, Spread::Linspace)?,
            prediction: Prediction::read(options, known)?,
            karras: None,
            last: Final::Zero,
        })
    }

    /// See [`SchedulerConfig::trained`](super::SchedulerConfig::trained).
    pub(crate) fn trained(&self, timestep: f32) -> (Prediction, Level) {
        (self.prediction, Level::from_ratio(self.sigmas.at(f64::from(timestep))))
    }

    /// The levels of a run.
    pub(crate) fn levels(&self, run: Run) -> Result<Levels> {
        let trained = self.sigmas.len();
        let mut timesteps = self.spacing.timesteps(run.of_trained(trained)?, trained);
        let mut sigmas: Vec<f64> =
            timesteps.iter().map(|&timestep| self.sigmas.at(f64::from(timestep as f32))).collect();
        if let Some(Karras { least, most }) = self.karras {
            let (least, most) = (least.unwrap_or(sigmas[run.steps - 1]), most.unwrap_or(sigmas[0]));
            if least > most || most > f64::from(f32::MAX) || least < f64::from(f32::MIN_POSITIVE) {
                refuse!("noise levels cannot fall from sigma_max {most:e} to sigma_min {least:e}");
            }
            sigmas = karras(run.steps, least, most);
            timesteps = sigmas.iter().map(|&sigma| self.sigmas.timestep(sigma)).collect();
        }
        sigmas.push(self.sigmas.end(self.last));
        let sigmas: Vec<f64> = sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect();
        let most = sigmas.iter().copied().fold(0.0, f64::max);
        let initial_scale =
            if self.spacing.spread == Spread::Leading { most.hypot(1.0) } else { most };
        let timesteps = timesteps.into_iter().map(|timestep| timestep as f32).collect();
        Ok(Levels { sigmas, timesteps, prediction: self.prediction, initial_scale })
    }
}

impl Levels {
    /// The calls of a sampler with one call a step.
    pub(crate) fn calls(&self) -> Vec<Call> {
        one_call_a_step(self.timesteps.iter().copied())
    }

    /// The latents at a level as the model was trained with them.
    pub(crate) fn scale_input(&self, level: usize, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.affine(Level::from_ratio(self.sigmas[level]).alpha, 0.0)?)
    }

    /// The predicted image at a level.
    pub(crate) fn image(&self, level: usize) -> Result<Mix> {
        let level = Level::from_ratio(self.sigmas[level]);
        let Mix { latents, output } = self.prediction.image(level)?;
        Ok(Mix { latents: latents * level.alpha, output })
    }

    /// The predicted noise at a level: the direction of the latents as sigma grows.
    pub(crate) fn noise(&self, level: usize) -> Mix {
        let level = Level::from_ratio(self.sigmas[level]);
        let Mix { latents, output } = self.prediction.noise(level);
        Mix { latents: latents * level.alpha, output }
    }

    /// The latents after an Euler step from a level to `sigma`.
    pub(crate) fn euler(&self, level: usize, sigma: f64) -> Mix {
        let change = sigma - self.sigmas[level];
        let Mix { latents, output } = self.noise(level);
        Mix { latents: 1.0 + change * latents, output: change * output }
    }
}
