//! DDIM: Song et al. 2020, <https://arxiv.org/abs/2010.02502>, without added noise (eta 0).

use crate::error::Result;
use crate::samplers::options::Options;
use crate::samplers::prediction::{Limit, Mix, Prediction, combine};
use crate::samplers::schedule::{Call, Run, Schedule, SchedulerConfig, one_call_a_step};
use crate::samplers::spacing::{Spacing, Spread};
use crate::samplers::training::{Level, Training};
use candle_core::Tensor;

/// Configuration of a `DDIMScheduler`.
#[derive(Clone, Debug)]
pub(crate) struct DdimConfig {
    training: Training,
    spacing: Spacing,
    prediction: Prediction,
    limit: Limit,
    /// alpha squared after the last step.
    last_square: f64,
}

/// One run.
#[derive(Clone, Debug)]
struct Ddim {
    calls: Vec<Call>,
    moves: Vec<Move>,
    limit: Limit,
}

/// The coefficients of a step.
#[derive(Clone, Copy, Debug)]
struct Move {
    image: Mix,
    noise: Mix,
    to: Level,
}

impl DdimConfig {
    pub(crate) fn read(options: &Options) -> Result<Self> {
        let zero_snr = options.flag("rescale_betas_zero_snr", false)?;
        let training = Training::read(options, (0.0001, 0.02), zero_snr)?;
        let to_one = options.flag("set_alpha_to_one", true)?;
        Ok(Self {
            spacing: Spacing::read(options, Spread::Leading)?,
            prediction: Prediction::read(
                options,
                &[Prediction::Noise, Prediction::Image, Prediction::Velocity],
            )?,
            limit: Limit::clip(options, true)?.or_quantile(options)?,
            last_square: if to_one { 1.0 } else { training.square(0)? },
            training,
        })
    }
}

impl SchedulerConfig for DdimConfig {
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>> {
        let trained = self.training.len();
        let steps = run.of_trained(trained)?;
        let timesteps = self.spacing.whole_timesteps(steps, trained);
        let plan = |&timestep: &usize| {
            let from = self.training.level(timestep)?;
            let to = timestep.checked_sub(trained / steps);
            let square = to.map_or(Ok(self.last_square), |to| self.training.square(to))?;
            let (image, noise) = (self.prediction.image(from)?, self.prediction.noise(from));
            Ok(Move { image, noise, to: Level::from_square(square) })
        };
        let moves = timesteps.iter().map(plan).collect::<Result<_>>()?;
        Ok(Box::new(Ddim {
            calls: one_call_a_step(timesteps.iter().map(|&timestep| timestep as f32)),
            moves,
            limit: self.limit,
        }))
    }

    fn trained(&self, timestep: f32) -> Result<(Prediction, Level)> {
        Ok((self.prediction, self.training.level(timestep.round() as usize)?))
    }
}

impl Schedule for Ddim {
    fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Equation 12. The noise is the predicted one even where the image was cut.
    fn step(
        &mut self,
        call: usize,
        latents: &Tensor,
        output: &Tensor,
        _: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let Move { image, noise, to } = self.moves[call];
        let image = self.limit.of(image.of(latents, output)?)?;
        combine(
            (to.alpha, &image),
            &[(to.sigma * noise.latents, latents), (to.sigma * noise.output, output)],
        )
    }
}
