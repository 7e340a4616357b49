//! The speed of the device that computes.

use candle_core::Tensor;
use secateur_eval::Spread;
use secateur_nn::{Placement, Weight, ops};
use std::time::Instant;

/// Timing of a product of square matrices, which is an upper bound for the rate of work made of
/// products.
pub(crate) struct Product {
    /// Rows and columns of both factors.
    side: usize,
    /// Products that are started before the last is waited for.
    at_once: usize,
    x: Tensor,
    weight: Weight,
    seconds: Vec<f64>,
}

impl Product {
    /// Makes the factors where a model is placed: on the CPU, the smallest whose product takes some
    /// milliseconds.
    pub(crate) fn new(placement: &Placement) -> secateur_models::Result<Self> {
        if placement.is_on_gpu() {
            return Self::of(placement, 4096, 10);
        }
        let mut product = Self::of(placement, 256, 1)?;
        while product.side < 4096 && product.timed()? < 4e-3 {
            product = Self::of(placement, 2 * product.side, 1)?;
        }
        Ok(product)
    }

    fn of(placement: &Placement, side: usize, at_once: usize) -> secateur_models::Result<Self> {
        let values = (0..side * side).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
        let x = placement.tensor::<f32>(values, (side, side))?;
        let weight = Weight::from(x.clone());
        let product = Self { side, at_once, x, weight, seconds: Vec::new() };
        product.timed()?;
        Ok(product)
    }

    /// Measures five times, in some tens of milliseconds.
    pub(crate) fn measure(&mut self) -> secateur_models::Result<()> {
        for _ in 0..5 {
            let seconds = self.timed()?;
            self.seconds.push(seconds);
        }
        Ok(())
    }

    /// Seconds of a product, which is made.
    fn timed(&self) -> secateur_models::Result<f64> {
        let start = Instant::now();
        for done in 1..=self.at_once {
            let y = ops::linear(&self.x, &self.weight, None, None)?;
            if done == self.at_once {
                Placement::cpu().bring(&y.narrow(0, 0, 1)?)?;
            }
        }
        Ok(start.elapsed().as_secs_f64() / self.at_once as f64)
    }

    /// Returns the rate in operations per second.
    pub(crate) fn rate(&self) -> Spread {
        let operations = 2.0 * (self.side as f64).powi(3);
        Spread::of(self.seconds.iter().map(|seconds| operations / seconds))
    }

    /// Names the product, with its rate.
    pub(crate) fn text(&self) -> String {
        let side = self.side;
        format!("a product of {side} x {side} x {side}: {} GFLOPS", self.rate().show(1e-9, 1))
    }
}
