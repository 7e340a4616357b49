//! Summary statistics of one metric.

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};

/// Mean, spread and range of one metric over the prompts, in the metric's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Arithmetic mean.
    #[serde(deserialize_with = "null_is_nan")]
    pub mean: f64,
    /// Sample standard deviation (divided by n - 1); 0 for a single value.
    #[serde(deserialize_with = "null_is_nan")]
    pub standard_deviation: f64,
    /// Smallest value.
    #[serde(deserialize_with = "null_is_nan")]
    pub minimum: f64,
    /// Largest value.
    #[serde(deserialize_with = "null_is_nan")]
    pub maximum: f64,
}

impl Summary {
    /// Summarises `values`. A NaN among them makes every field NaN.
    ///
    /// # Errors
    /// There are no values.
    pub fn of(values: &[f64]) -> Result<Self> {
        if values.is_empty() {
            return Err(Error::NoValues);
        }
        if values.iter().any(|value| value.is_nan()) {
            let nan = f64::NAN;
            return Ok(Self { mean: nan, standard_deviation: nan, minimum: nan, maximum: nan });
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Ok(Self {
            mean,
            standard_deviation: if values.len() == 1 {
                0.0
            } else {
                (squares / (count - 1.0)).sqrt()
            },
            minimum: values.iter().copied().fold(f64::INFINITY, f64::min),
            maximum: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

/// Reads a number. Reads `null` as NaN, as JSON has no other form for a value that is not finite.
pub(crate) fn null_is_nan<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(|value| value.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // Squared deviations from 5 sum to 32; divided by 7, not by 8.
        let summary = Summary::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!((summary.mean, summary.minimum, summary.maximum), (5.0, 2.0, 9.0));
        assert!((summary.standard_deviation - 2.138_089_935_299_395).abs() < 1e-14);
    }

    #[test]
    fn one_value_has_no_spread_and_none_is_an_error() {
        let summary = Summary::of(&[-3.5]).unwrap();
        assert_eq!((summary.mean, summary.standard_deviation), (-3.5, 0.0));
        assert!(matches!(Summary::of(&[]), Err(Error::NoValues)));
    }

    #[test]
    fn nan_is_not_hidden() {
        let summary = Summary::of(&[1.0, f64::NAN]).unwrap();
        assert!(summary.mean.is_nan() && summary.minimum.is_nan() && summary.maximum.is_nan());
    }
}
