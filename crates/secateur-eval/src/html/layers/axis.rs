//! The logarithmic axis of the errors.

/// Values more than this many decades under the largest are drawn at the edge, so that one layer
/// that is almost exact does not compress the scale for all others.
const DECADES: i32 = 6;

/// A logarithmic axis over whole decades.
#[derive(Debug, PartialEq)]
pub(super) struct LogAxis {
    /// Power of ten at the left end.
    low: i32,
    /// Power of ten at the right end.
    high: i32,
}

/// A mark on the axis.
#[derive(Debug, PartialEq)]
pub(super) struct Tick {
    /// Position along the axis in \[0, 1\].
    pub(super) place: f64,
    /// The label beside the tick; empty for a minor tick.
    pub(super) label: String,
}

impl LogAxis {
    /// Creates an axis that covers the positive and finite ones of `values`. If there are none, it
    /// covers one decade up to 1.
    pub(super) fn over(values: impl Iterator<Item = f64> + Clone) -> Self {
        let positive = values.filter(|value| *value > 0.0 && value.is_finite());
        let Some(largest) = positive.clone().reduce(f64::max) else {
            return Self { low: -1, high: 0 };
        };
        let smallest = positive.fold(largest, f64::min);
        // An f64 has decades -324 to 308, so the conversions are exact.
        #[expect(clippy::cast_possible_truncation, reason = "within i32 by far")]
        let (low, high) = (smallest.log10().floor() as i32, largest.log10().ceil() as i32);
        Self { low: low.clamp(high - DECADES, high - 1), high }
    }

    /// Returns the position of `value` in \[0, 1\], or `None` if it is zero or not finite.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let has_place = value > 0.0 && value.is_finite();
        has_place.then(|| {
            ((value.log10() - f64::from(self.low)) / f64::from(self.high - self.low))
                .clamp(0.0, 1.0)
        })
    }

    /// Returns one labelled tick per decade, and between them ticks at 2 and 5, which are labelled
    /// if the axis is short.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        let short = self.high - self.low <= 2;
        let mut ticks = Vec::new();
        for exponent in self.low..=self.high {
            for step in [1, 2, 5] {
                if exponent == self.high && step > 1 {
                    break;
                }
                let place = (f64::from(exponent) + f64::from(step).log10() - f64::from(self.low))
                    / f64::from(self.high - self.low);
                let label = if step == 1 || short { label(step, exponent) } else { String::new() };
                ticks.push(Tick { place, label });
            }
        }
        ticks
    }
}

/// Formats `step * 10^exponent`, in plain decimals if that is short.
fn label(step: u8, exponent: i32) -> String {
    match exponent {
        -4..=-1 => format!(
            "{:.*}",
            exponent.unsigned_abs() as usize,
            f64::from(step) * 10f64.powi(exponent)
        ),
        0..=3 => format!("{:.0}", f64::from(step) * 10f64.powi(exponent)),
        _ => format!("{step}e{exponent}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_whole_decades() {
        assert_eq!(LogAxis::over([0.003, 0.2].into_iter()), LogAxis { low: -3, high: 0 });
        assert_eq!(LogAxis::over([0.01, 0.01].into_iter()), LogAxis { low: -3, high: -2 });
        assert_eq!(LogAxis::over([0.0, f64::NAN].into_iter()), LogAxis { low: -1, high: 0 });
        assert_eq!(LogAxis::over([1e-12, 0.5].into_iter()), LogAxis { low: -6, high: 0 });
    }

    #[test]
    fn places_and_ticks() {
        let axis = LogAxis { low: -2, high: 0 };
        assert_eq!(axis.place(0.1), Some(0.5));
        assert_eq!(axis.place(1e-9), Some(0.0));
        assert_eq!(axis.place(0.0), None);
        let labels: Vec<_> = axis.ticks().into_iter().map(|tick| tick.label).collect();
        assert_eq!(labels, ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]);
    }
}
