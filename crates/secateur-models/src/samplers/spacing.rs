//! The spacing of a run's timesteps among those of the training.

use crate::error::Result;
use crate::samplers::options::Options;
use serde::Deserialize;

/// How timesteps are spaced: Lin et al. 2023, table 2, <https://arxiv.org/abs/2305.08891>.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Spread {
    /// Evenly from the last to the first timestep of the training.
    Linspace,
    /// At the beginning of each of `count` equal parts.
    Leading,
    /// At the end of each of `count` equal parts.
    Trailing,
}

/// The spread of timesteps, and the offset that is added to those of [`Spread::Leading`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spacing {
    pub(crate) spread: Spread,
    offset: usize,
}

impl Spacing {
    /// Reads a configuration, with the class's default.
    pub(crate) fn read(options: &Options, default: Spread) -> Result<Self> {
        let offset: u32 = options.get("steps_offset", 0)?;
        Ok(Self { spread: options.get("timestep_spacing", default)?, offset: offset as usize })
    }

    /// `count` falling timesteps of `trained`; those of [`Spread::Linspace`] are not whole. The
    /// order of operations is NumPy's, since what lies halfway is rounded to the even one. For some
    /// counts diffusers' trailing timesteps are one more, -1, as a rest of rounding; not here.
    pub(crate) fn timesteps(self, count: usize, trained: usize) -> Vec<f64> {
        let end = trained as f64;
        match self.spread {
            Spread::Linspace => {
                let step = (end - 1.0) / (count.max(2) - 1) as f64;
                (0..count)
                    .rev()
                    .map(|i| if i > 0 && i + 1 == count { end - 1.0 } else { i as f64 * step })
                    .collect()
            }
            Spread::Leading => {
                let step = trained / count;
                (0..count).rev().map(|i| (i * step + self.offset) as f64).collect()
            }
            Spread::Trailing => {
                let step = (end - end / count as f64) - end;
                (0..count).map(|i| (end + i as f64 * step).round_ties_even() - 1.0).collect()
            }
        }
    }

    /// [`Spacing::timesteps`] rounded.
    pub(crate) fn whole_timesteps(self, count: usize, trained: usize) -> Vec<usize> {
        self.timesteps(count, trained)
            .into_iter()
            .map(|timestep| timestep.round_ties_even() as usize)
            .collect()
    }
}
