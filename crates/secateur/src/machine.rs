//! How fast this machine is.

use secateur_eval::Spread;
use secateur_kernels::{Panels, linear::linear};
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
