//! What the Euler and Heun samplers share: latents x0 + sigma e, whose variance explodes (Karras et al. 2022,
//! <https://arxiv.org/abs/2206.00364>), for models that were trained with latents of constant variance.

use super::options::Options;
use super::prediction::{Mix, Prediction};
use super::sigmas::{Final, Sigmas, karras};
use super::spacing::{Spacing, Spread};
use super::training::Level;
use super::{Call, Run, one_call_a_step};
use crate::error::{Error, Result};
use candle_core::Tensor;

/// Configuration.
#[derive(Clone, Debug)]
pub(super) struct Exploding {
    pub(super) sigmas: Sigmas,
    pub(super) spacing: Spacing,
    pub(super) prediction: Prediction,
    pub(super) karras: Option<Karras>,
    pub(super) last: Final,
}

/// Bounds of the Karras levels; by default the levels at the first and last timestep of the run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Karras {
    pub(super) least: Option<f64>,
    pub(super) most: Option<f64>,
}

/// The noise levels of a run.
#[derive(Clone, Debug)]
pub(super) struct Levels {
    /// Steps + 1 of them, falling.
    pub(super) sigmas: Vec<f64>,
    pub(super) timesteps: Vec<f32>,
    pub(super) prediction: Prediction,
    /// What noise is multiplied by to start with.
    pub(super) initial_scale: f64,
}

impl Exploding {
    /// Reads what all of them have, with the defaults of `beta_start` and `beta_end`; there are no Karras levels.
    pub(super) fn read(options: &Options, betas: (f64, f64), zero_snr: bool, known: &[Prediction]) -> Result<Self> {
        Ok(Self {
            sigmas: Sigmas::read(options, betas, zero_snr)?,
            spacing: Spacing::read(options, Spread::Linspace)?,
            prediction: Prediction::read(options, known)?,
            karras: None,
            last: Final::Zero,
        })
    }

    /// See [`SchedulerConfig::training_pair`](super::SchedulerConfig::training_pair).
    pub(super) fn training_pair(&self, timestep: f32, clean: &Tensor, noise: &Tensor) -> Result<(Tensor, Tensor)> {
        self.prediction.pair(Level::from_ratio(self.sigmas.at(f64::from(timestep))), clean, noise)
    }

    /// The levels of a run.
    pub(super) fn levels(&self, run: Run) -> Result<Levels> {
        let trained = self.sigmas.len();
        let mut timesteps = self.spacing.timesteps(run.of_trained(trained)?, trained);
        let mut sigmas: Vec<f64> =
            timesteps.iter().map(|&timestep| self.sigmas.at(f64::from(timestep as f32))).collect();
        if let Some(Karras { least, most }) = self.karras {
            let (least, most) = (least.unwrap_or(sigmas[run.steps - 1]), most.unwrap_or(sigmas[0]));
            if least > most || most > f64::from(f32::MAX) || least < f64::from(f32::MIN_POSITIVE) {
                let problem = format!("noise levels cannot fall from sigma_max {most:e} to sigma_min {least:e}");
                return Err(Error::Request(problem));
            }
            sigmas = karras(run.steps, least, most);
            timesteps = sigmas.iter().map(|&sigma| self.sigmas.timestep(sigma)).collect();
        }
        sigmas.push(self.sigmas.end(self.last));
        let sigmas: Vec<f64> = sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect();
        let most = sigmas.iter().copied().fold(0.0, f64::max);
        let initial_scale = if self.spacing.spread == Spread::Leading { most.hypot(1.0) } else { most };
        let timesteps = timesteps.into_iter().map(|timestep| timestep as f32).collect();
        Ok(Levels { sigmas, timesteps, prediction: self.prediction, initial_scale })
    }
}

impl Levels {
    /// The calls of a sampler with one call a step.
    pub(super) fn calls(&self) -> Vec<Call> {
        one_call_a_step(self.timesteps.iter().copied())
    }

    /// The latents at a level as the model was trained with them.
    pub(super) fn scale_input(&self, level: usize, latents: &Tensor) -> Result<Tensor> {
        Ok(latents.affine(Level::from_ratio(self.sigmas[level]).alpha, 0.0)?)
    }

    /// The predicted image at a level.
    pub(super) fn image(&self, level: usize) -> Result<Mix> {
        let level = Level::from_ratio(self.sigmas[level]);
        let Mix { latents, output } = self.prediction.image(level)?;
        Ok(Mix { latents: latents * level.alpha, output })
    }

    /// The predicted noise at a level: the direction of the latents as sigma grows.
    pub(super) fn noise(&self, level: usize) -> Mix {
        let level = Level::from_ratio(self.sigmas[level]);
        let Mix { latents, output } = self.prediction.noise(level);
        Mix { latents: latents * level.alpha, output }
    }

    /// The latents after an Euler step from a level to `sigma`.
    pub(super) fn euler(&self, level: usize, sigma: f64) -> Mix {
        let change = sigma - self.sigmas[level];
        let Mix { latents, output } = self.noise(level);
        Mix { latents: 1.0 + change * latents, output: change * output }
    }
}
