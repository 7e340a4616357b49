//! The weights of the denoising steps.

use crate::error::Error;
use std::fmt;
use std::str::FromStr;

/// The weights of the denoising steps in the Hessian (OBS-Diff, eq. 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weighting {
    /// Equal weights.
    Uniform,
    /// Falls linearly.
    LinearDecrease,
    /// Rises linearly.
    LinearIncrease,
    /// Falls with ln(T - t + 1) / ln T: the paper's choice.
    #[default]
    LogDecrease,
    /// Rises with ln t / ln T.
    LogIncrease,
    /// In proportion to the effect of a step's errors on the final latents, measured on the model
    /// with a few of the calibration prompts.
    Measured,
}

impl Weighting {
    /// All weightings.
    pub const ALL: [Self; 6] = [
        Self::Uniform,
        Self::LinearDecrease,
        Self::LinearIncrease,
        Self::LogDecrease,
        Self::LogIncrease,
        Self::Measured,
    ];

    /// Least and greatest weight, for weightings that are not measured.
    pub const RANGE: (f64, f64) = (0.8, 1.2);

    /// Returns the weights of `steps` steps, the noisiest step first, or `None` if they have to be
    /// measured.
    #[must_use]
    pub fn weights(self, steps: usize) -> Option<Vec<f64>> {
        let (low, high) = Self::RANGE;
        if steps < 2 {
            return Some(vec![1.0; steps]);
        }
        let share: fn(f64, f64) -> f64 = match self {
            Self::Uniform => |_, _| 0.5,
            Self::LinearDecrease => |t, total| (total - t) / (total - 1.0),
            Self::LinearIncrease => |t, total| (t - 1.0) / (total - 1.0),
            Self::LogDecrease => |t, total| (total - t + 1.0).ln() / total.ln(),
            Self::LogIncrease => |t, total| t.ln() / total.ln(),
            Self::Measured => return None,
        };
        Some((1..=steps).map(|t| low + (high - low) * share(t as f64, steps as f64)).collect())
    }
}

impl fmt::Display for Weighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uniform => "uniform",
            Self::LinearDecrease => "linear-decrease",
            Self::LinearIncrease => "linear-increase",
            Self::LogDecrease => "log-decrease",
            Self::LogIncrease => "log-increase",
            Self::Measured => "measured",
        })
    }
}

impl FromStr for Weighting {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let names = || Self::ALL.map(|w| w.to_string()).join(", ");
        let found = Self::ALL.into_iter().find(|weighting| weighting.to_string() == text);
        found.ok_or_else(|| {
            Error::Request(format!("weighting {text:?} is unknown; there are {}", names()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Weighting;

    #[test]
    fn the_default_gives_the_papers_values() {
        let weights = Weighting::default().weights(25).unwrap();
        let close =
            |got: f64, want: f64| assert!((got - want).abs() < 5e-5, "{got} against {want}");
        for (got, want) in weights.iter().zip([1.2, 1.1949, 1.1896, 1.1841]) {
            close(*got, want);
        }
        for (got, want) in weights[22..].iter().zip([0.9365, 0.8861, 0.8]) {
            close(*got, want);
        }
    }

    #[test]
    fn rising_is_falling_reversed_and_one_step_has_a_weight() {
        for (up, down) in [
            (Weighting::LinearIncrease, Weighting::LinearDecrease),
            (Weighting::LogIncrease, Weighting::LogDecrease),
        ] {
            let mut weights = up.weights(9).unwrap();
            weights.reverse();
            assert_eq!(weights, down.weights(9).unwrap());
        }
        for weighting in Weighting::ALL {
            assert_eq!(weighting.weights(1).unwrap(), [1.0]);
            assert_eq!(weighting.to_string().parse::<Weighting>().unwrap(), weighting);
        }
    }
}
