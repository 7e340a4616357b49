//! Noise levels by their ratio of noise to image, sigma: Karras et al. 2022,
//! <https://arxiv.org/abs/2206.00364>.

use crate::error::Result;
use crate::samplers::options::Options;
use crate::samplers::training::Training;
use serde::Deserialize;

/// The noise level after the last step (`final_sigmas_type`).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Final {
    Zero,
    SigmaMin,
}

/// The noise levels of the training's timesteps, rising; in f32 as in diffusers.
#[derive(Clone, Debug)]
pub(crate) struct Sigmas {
    trained: Vec<f32>,
}

impl Sigmas {
    /// Reads a configuration. With `zero_snr` the last level would be infinite: it is made finite
    /// by what f16 can hold of an image.
    pub(crate) fn read(options: &Options, betas: (f64, f64), zero_snr: bool) -> Result<Self> {
        let training = Training::read(options, betas, zero_snr)?;
        let least = if zero_snr { 2f32.powi(-24) } else { 0.0 };
        let sigma = |&square: &f32| ((1.0 - square.max(least)) / square.max(least)).sqrt();
        let trained: Vec<f32> = training.squares().iter().map(sigma).collect();
        if trained.windows(2).all(|pair| pair[0] < pair[1]) {
            Ok(Self { trained })
        } else {
            Err(options.invalid(
                "the noise levels of the last timesteps cannot be told apart: the \
                betas are too large",
            ))
        }
    }

    /// The number of timesteps.
    pub(crate) fn len(&self) -> usize {
        self.trained.len()
    }

    /// The lowest level.
    pub(crate) fn first(&self) -> f64 {
        f64::from(self.trained[0])
    }

    /// The highest level.
    pub(crate) fn last(&self) -> f64 {
        f64::from(self.trained[self.len() - 1])
    }

    /// The level at a timestep, between those of the training in proportion.
    pub(crate) fn at(&self, timestep: f64) -> f64 {
        let below = (timestep as usize).min(self.len() - 2);
        let (low, high) = (f64::from(self.trained[below]), f64::from(self.trained[below + 1]));
        low + (high - low) * (timestep - below as f64).min(1.0)
    }

    /// The timestep of a level, in proportion to its logarithm; the table of logarithms is f32 too.
    pub(crate) fn timestep(&self, sigma: f64) -> f64 {
        let log = |sigma: f32| f64::from(f64::from(sigma).ln() as f32);
        let wanted = sigma.ln();
        let below = self.trained.partition_point(|&sigma| log(sigma) <= wanted);
        let below = below.saturating_sub(1).min(self.len() - 2);
        let (low, high) = (log(self.trained[below]), log(self.trained[below + 1]));
        below as f64 + ((wanted - low) / (high - low).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0)
    }

    /// The level after the last step.
    pub(crate) fn end(&self, end: Final) -> f64 {
        match end {
            Final::Zero => 0.0,
            Final::SigmaMin => self.first(),
        }
    }
}

/// Falling levels, by equation 5 with rho 7.
pub(crate) fn karras(count: usize, least: f64, most: f64) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (least.powf(1.0 / RHO), most.powf(1.0 / RHO));
    let step = 1.0 / (count.max(2) - 1) as f64;
    (0..count).map(|i| (high + i as f64 * step * (low - high)).powf(RHO)).collect()
}
