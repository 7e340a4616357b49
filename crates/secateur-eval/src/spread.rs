//! The spread of measured times.

use serde::Serialize;

/// Median and quartiles of several measurements, in their unit. Unlike a mean, a median hardly
/// changes if other load of the machine slows a few measurements down.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median: half of the values are no larger.
    pub median: f64,
    /// The lower quartile: a fourth of the values are no larger.
    pub lower_quartile: f64,
    /// The upper quartile: a fourth of the values are no smaller.
    pub upper_quartile: f64,
}

impl Spread {
    /// Computes the quantiles, interpolated linearly between two values. All are NaN if there are
    /// no values.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let place = share * values.len().saturating_sub(1) as f64;
            let at = |place: f64| values.get(place as usize).copied().unwrap_or(f64::NAN);
            at(place.floor()) + place.fract() * (at(place.ceil()) - at(place.floor()))
        };
        Self {
            median: quantile(0.5),
            lower_quartile: quantile(0.25),
            upper_quartile: quantile(0.75),
        }
    }

    /// Formats the median, and the quartiles in parentheses, multiplied by `scale`.
    #[must_use]
    pub fn show(&self, scale: f64, decimals: usize) -> String {
        let show = |value: f64| format!("{:.decimals$}", scale * value);
        format!(
            "{} ({}-{})",
            show(self.median),
            show(self.lower_quartile),
            show(self.upper_quartile)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn quartiles() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]);
        assert_eq!(
            (spread.lower_quartile, spread.median, spread.upper_quartile),
            (1.75, 2.5, 3.25)
        );
        assert_eq!(Spread::of([7.0]).show(1.0, 1), "7.0 (7.0-7.0)");
        assert!(Spread::of([]).median.is_nan());
    }
}
