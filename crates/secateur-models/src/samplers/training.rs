//! The noise schedules that models were trained with.

use crate::error::{Error, Result};
use crate::samplers::options::Options;
use serde::Deserialize;
use std::f64::consts::FRAC_PI_2;

/// More training timesteps than any model has: what asks for more is a mistake, and would only take
/// memory.
const MOST_TIMESTEPS: usize = 1_000_000;

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BetaSchedule {
    Linear,
    ScaledLinear,
    /// Nichol and Dhariwal 2021, <https://arxiv.org/abs/2102.09672>.
    #[serde(rename = "squaredcos_cap_v2")]
    SquaredCosine,
}

/// The share of the image and of noise in the latents at a timestep: alpha x0 + sigma e.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    pub(crate) alpha: f64,
    pub(crate) sigma: f64,
}

impl Level {
    /// The level of constant variance with this square of alpha.
    pub(crate) fn from_square(square: f64) -> Self {
        Self { alpha: square.sqrt(), sigma: (1.0 - square).sqrt() }
    }

    /// The level of constant variance with this ratio sigma / alpha.
    pub(crate) fn from_ratio(ratio: f64) -> Self {
        let alpha = 1.0 / (ratio * ratio + 1.0).sqrt();
        Self { alpha, sigma: ratio * alpha }
    }
}

/// The noise schedule of the training.
#[derive(Clone, Debug)]
pub(crate) struct Training {
    /// alpha squared at each timestep (`alphas_cumprod`), falling. In f32 as in diffusers: where it
    /// is close to 1, what is left to 1 is the noise, and has lost digits that should be lost here
    /// too.
    squares: Vec<f32>,
}

impl Training {
    /// Reads a configuration, with the class's defaults of `beta_start` and `beta_end`. `zero_snr`
    /// rescales it to end in nothing but noise.
    pub(crate) fn read(
        options: &Options,
        (start, end): (f64, f64),
        zero_snr: bool,
    ) -> Result<Self> {
        let timesteps: usize = options.get("num_train_timesteps", 1000)?;
        if !(2..=MOST_TIMESTEPS).contains(&timesteps) {
            return Err(
                options.refuse("num_train_timesteps", format!("a number of 2 to {MOST_TIMESTEPS}"))
            );
        }
        let start = options.get("beta_start", start)?;
        let end = options.get("beta_end", end)?;
        let schedule = options.get("beta_schedule", BetaSchedule::Linear)?;
        let betas = match options.get::<Option<Vec<f32>>>("trained_betas", None)? {
            Some(betas) if betas.len() == timesteps => betas,
            Some(betas) => {
                let problem =
                    format!("{} trained_betas for {timesteps} num_train_timesteps", betas.len());
                return Err(options.invalid(problem));
            }
            None => match schedule {
                BetaSchedule::Linear => linear(start, end, timesteps),
                BetaSchedule::ScaledLinear => linear(start.sqrt(), end.sqrt(), timesteps)
                    .into_iter()
                    .map(|beta| beta * beta)
                    .collect(),
                BetaSchedule::SquaredCosine => squared_cosine(timesteps),
            },
        };
        let squares = products(&betas);
        let squares = if zero_snr { end_in_noise(&squares) } else { squares };
        let falling = squares.windows(2).all(|pair| pair[0] > pair[1]);
        let last = squares[timesteps - 1];
        if falling && squares[0] < 1.0 && (last > 0.0 || (zero_snr && last == 0.0)) {
            return Ok(Self { squares });
        }
        let problem = "the share of noise must grow with every timestep and stay between 0 and 1: \
                       beta_start, beta_end or trained_betas are too small, too large or not \
                       numbers";
        Err(options.invalid(problem))
    }

    /// The number of timesteps.
    pub(crate) fn len(&self) -> usize {
        self.squares.len()
    }

    /// alpha squared at each timestep.
    pub(crate) fn squares(&self) -> &[f32] {
        &self.squares
    }

    /// The share of image and noise at a timestep.
    pub(crate) fn level(&self, timestep: usize) -> Result<Level> {
        Ok(Level::from_square(self.square(timestep)?))
    }

    /// alpha squared at a timestep.
    pub(crate) fn square(&self, timestep: usize) -> Result<f64> {
        let square = self.squares.get(timestep).copied().map(f64::from);
        square.ok_or_else(|| {
            let trained = self.len();
            Error::Request(format!(
                "timestep {timestep} lies beyond the {trained} of the training: take fewer steps"
            ))
        })
    }
}

/// As `torch.linspace` does it in f32, from both ends.
fn linear(start: f64, end: f64, count: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = (end - start) / (count - 1) as f32;
    let at = |i| {
        if i < count / 2 { start + step * i as f32 } else { end - step * (count - 1 - i) as f32 }
    };
    (0..count).map(at).collect()
}

fn squared_cosine(count: usize) -> Vec<f32> {
    let bar = |i: usize| ((i as f64 / count as f64 + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2);
    (0..count).map(|i| (1.0 - bar(i + 1) / bar(i)).min(0.999) as f32).collect()
}

/// Products of all 1 - beta up to each, summed up in f64 as `torch.cumprod` does.
fn products(betas: &[f32]) -> Vec<f32> {
    let mut product = 1.0;
    let multiply = |beta| {
        product *= f64::from(1.0 - beta);
        product as f32
    };
    betas.iter().map(multiply).collect()
}

/// Lin et al. 2023, algorithm 1, <https://arxiv.org/abs/2305.08891>: alpha is shifted to end at 0
/// and scaled to start where it did.
fn end_in_noise(squares: &[f32]) -> Vec<f32> {
    let (first, last) = (squares[0].sqrt(), squares[squares.len() - 1].sqrt());
    let scale = first / (first - last);
    let squares: Vec<f32> =
        squares.iter().map(|square| ((square.sqrt() - last) * scale).powi(2)).collect();
    let mut before = 1.0;
    let beta = |&square: &f32| 1.0 - square / std::mem::replace(&mut before, square);
    products(&squares.iter().map(beta).collect::<Vec<_>>())
}
