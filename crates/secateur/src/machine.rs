//! How fast this machine is.

use secateur_kernels::{Panels, linear::linear};
use serde::Serialize;
use std::time::Instant;

/// A product of square matrices, which tells the rate that work made of products can come to.
pub(crate) struct Product {
    x: Vec<f32>,
    weight: Panels,
    y: Vec<f32>,
    seconds: Vec<f64>,
}

impl Product {
    /// Rows and columns of both factors.
    pub(crate) const SIDE: usize = 1024;
    const OPERATIONS: f64 = 2.0 * (Self::SIDE * Self::SIDE * Self::SIDE) as f64;

    pub(crate) fn new() -> Self {
        let x = vec![1.0; Self::SIDE * Self::SIDE];
        Self { weight: Panels::transposed(&x, Self::SIDE), y: x.clone(), x, seconds: Vec::new() }
    }

    /// Takes some tens of milliseconds.
    pub(crate) fn measure(&mut self) {
        for _ in 0..5 {
            let start = Instant::now();
            linear(&self.x, &self.weight, None, None, &mut self.y);
            self.seconds.push(start.elapsed().as_secs_f64());
        }
    }

    /// Operations a second.
    pub(crate) fn rate(&self) -> Spread {
        Spread::of(self.seconds.iter().map(|seconds| Self::OPERATIONS / seconds))
    }
}

/// Of several measurements.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) upper_quartile: f64,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let place = share * (values.len() - 1) as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + place.fract() * (above - below)
        };
        Self { median: quantile(0.5), lower_quartile: quantile(0.25), upper_quartile: quantile(0.75) }
    }

    /// In a unit that is `scale` times smaller.
    pub(crate) fn show(&self, scale: f64, decimals: usize) -> String {
        let show = |value: f64| format!("{:.decimals$}", scale * value);
        format!("{} ({}-{})", show(self.median), show(self.lower_quartile), show(self.upper_quartile))
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn quartiles() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]);
        assert_eq!((spread.lower_quartile, spread.median, spread.upper_quartile), (1.75, 2.5, 3.25));
        assert_eq!(Spread::of([7.0]).show(1.0, 1), "7.0 (7.0-7.0)");
    }
}
