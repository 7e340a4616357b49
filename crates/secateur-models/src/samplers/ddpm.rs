//! DDPM: Ho et al. 2020, <https://arxiv.org/abs/2006.11239>.

use crate::error::Result;
use crate::samplers::options::Options;
use crate::samplers::prediction::{Limit, Mix, Prediction, combine};
use crate::samplers::schedule::{Call, Run, Schedule, SchedulerConfig, one_call_a_step};
use crate::samplers::spacing::{Spacing, Spread};
use crate::samplers::training::{Level, Training};
use candle_core::Tensor;
use serde::Deserialize;

/// Variance of the noise that a step adds. Learned variances are not supported: they are additional
/// channels of the model's output.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Variance {
    /// That of x_(t-1) given x_t and x0, equation 7; by its logarithm is the same.
    #[serde(alias = "fixed_small_log")]
    FixedSmall,
    /// beta_t.
    FixedLarge,
}

/// Configuration of a `DDPMScheduler`.
#[derive(Clone, Debug)]
pub(crate) struct DdpmConfig {
    training: Training,
    spacing: Spacing,
    prediction: Prediction,
    limit: Limit,
    variance: Variance,
}

/// One run.
#[derive(Clone, Debug)]
struct Ddpm {
    calls: Vec<Call>,
    moves: Vec<Move>,
    limit: Limit,
}

/// The coefficients of a step: the factors of the predicted image, of the latents and of the added
/// noise.
#[derive(Clone, Copy, Debug)]
struct Move {
    predicted: Mix,
    image: f64,
    latents: f64,
    noise: f64,
}

impl DdpmConfig {
    pub(crate) fn read(options: &Options) -> Result<Self> {
        let zero_snr = options.flag("rescale_betas_zero_snr", false)?;
        Ok(Self {
            training: Training::read(options, (0.0001, 0.02), zero_snr)?,
            spacing: Spacing::read(options, Spread::Leading)?,
            prediction: Prediction::read(
                options,
                &[Prediction::Noise, Prediction::Image, Prediction::Velocity],
            )?,
            limit: Limit::clip(options, true)?.or_quantile(options)?,
            variance: options
                .get::<Option<Variance>>("variance_type", None)?
                .unwrap_or(Variance::FixedSmall),
        })
    }

    /// The step from timestep `from` to `to`, or to the image.
    fn plan(&self, from: usize, to: Option<usize>) -> Result<Move> {
        let predicted = self.prediction.image(self.training.level(from)?)?;
        let square = self.training.square(from)?;
        let square_to = to.map_or(Ok(1.0), |to| self.training.square(to))?;
        let alpha = square / square_to;
        let beta = 1.0 - alpha;
        let rest = (1.0 - square_to) / (1.0 - square);
        let variance = match self.variance {
            Variance::FixedSmall => (rest * beta).max(1e-20),
            Variance::FixedLarge => beta,
        };
        Ok(Move {
            predicted,
            image: square_to.sqrt() * beta / (1.0 - square),
            latents: alpha.sqrt() * rest,
            noise: if from > 0 { variance.sqrt() } else { 0.0 },
        })
    }
}

impl SchedulerConfig for DdpmConfig {
    fn schedule(&self, run: Run) -> Result<Box<dyn Schedule>> {
        let trained = self.training.len();
        let timesteps = self.spacing.whole_timesteps(run.of_trained(trained)?, trained);
        let next = timesteps.iter().skip(1).copied().map(Some).chain([None]);
        let moves = timesteps
            .iter()
            .zip(next)
            .map(|(&from, to)| self.plan(from, to))
            .collect::<Result<_>>()?;
        Ok(Box::new(Ddpm {
            calls: one_call_a_step(timesteps.iter().map(|&timestep| timestep as f32)),
            moves,
            limit: self.limit,
        }))
    }

    fn trained(&self, timestep: f32) -> Result<(Prediction, Level)> {
        Ok((self.prediction, self.training.level(timestep.round() as usize)?))
    }
}

impl Schedule for Ddpm {
    fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Equation 7, and the noise of algorithm 2.
    fn step(
        &mut self,
        call: usize,
        latents: &Tensor,
        output: &Tensor,
        noise: &mut dyn FnMut() -> Result<Tensor>,
    ) -> Result<Tensor> {
        let plan = self.moves[call];
        let image = self.limit.of(plan.predicted.of(latents, output)?)?;
        let mean = combine((plan.image, &image), &[(plan.latents, latents)])?;
        if plan.noise == 0.0 { Ok(mean) } else { combine((1.0, &mean), &[(plan.noise, &noise()?)]) }
    }
}
