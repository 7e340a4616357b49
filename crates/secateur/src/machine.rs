//! The speed of this machine.

use secateur_eval::Spread;
use secateur_kernels::{Panels, linear::linear};
use std::time::Instant;

/// Timing of a product of square matrices, which is an upper bound for the rate of work made of
/// products.
#[derive(Default)]
pub(crate) struct Product {
    seconds: Vec<f64>,
}

impl Product {
    /// Rows and columns of both factors.
    pub(crate) const SIDE: usize = 1024;
    const OPERATIONS: f64 = 2.0 * (Self::SIDE * Self::SIDE * Self::SIDE) as f64;

    /// Measures once, in some tens of milliseconds.
    pub(crate) fn measure(&mut self) {
        let x = vec![1.0; Self::SIDE * Self::SIDE];
        let (weight, mut y) = (Panels::transposed(&x, Self::SIDE), x.clone());
        for _ in 0..5 {
            let start = Instant::now();
            linear(&x, &weight, None, None, &mut y);
            self.seconds.push(start.elapsed().as_secs_f64());
        }
    }

    /// Returns the rate in operations per second.
    pub(crate) fn rate(&self) -> Spread {
        Spread::of(self.seconds.iter().map(|seconds| Self::OPERATIONS / seconds))
    }
}
