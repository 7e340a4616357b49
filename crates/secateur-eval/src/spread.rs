//! The spread of measured times.

use serde::Serialize;

/// Of several measurements, in their unit: unlike a mean, it is not moved by the few that something
/// else on the machine made slow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half of them are no larger.
    pub median: f64,
    /// A fourth of them are no larger.
    pub lower_quartile: f64,
    /// A fourth of them are no smaller.
    pub upper_quartile: f64,
}

impl Spread {
    /// Between two values, linearly so. Of none, NaN.
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

    /// In a unit that is `scale` times smaller: the median, and the quartiles in parentheses.
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
