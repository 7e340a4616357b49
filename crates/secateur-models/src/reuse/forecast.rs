//! Forecasts of the outputs of a unit that does not run: a polynomial through its earlier outputs.

use candle_core::Tensor;

/// The latest outputs of a unit, the last one first.
#[derive(Clone, Debug, Default)]
pub struct Past(Vec<Made>);

/// The outputs of a unit at one call.
#[derive(Clone, Debug)]
pub struct Made {
    /// Number of the call.
    pub call: usize,
    /// Timestep of the call.
    pub timestep: f64,
    /// The reused tensors.
    pub tensors: Vec<Tensor>,
}

impl Past {
    /// The outputs that the polynomial goes through, the last one first.
    #[must_use]
    pub fn made(&self) -> &[Made] {
        &self.0
    }

    /// Adds new outputs, and keeps as many as a polynomial of degree `order` needs.
    pub fn push(&mut self, made: Made, order: usize) {
        // Some samplers call the denoiser twice at a timestep.
        self.0.retain(|earlier| earlier.timestep != made.timestep);
        self.0.insert(0, made);
        self.0.truncate(order + 1);
    }

    /// Factors of the kept outputs in the forecast at `timestep`.
    #[must_use]
    pub fn weights(&self, timestep: f64) -> Vec<f64> {
        lagrange(&self.0.iter().map(|made| made.timestep).collect::<Vec<_>>(), timestep)
    }

    /// The forecast at `timestep`. Empty if no outputs are kept.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn forecast(&self, timestep: f64) -> candle_core::Result<Vec<Tensor>> {
        let Some(last) = self.0.first() else { return Ok(Vec::new()) };
        if self.0.len() == 1 {
            return Ok(last.tensors.clone());
        }
        let weights = self.weights(timestep);
        let sum = |index: usize| {
            let mut terms = self
                .0
                .iter()
                .zip(&weights)
                .map(|(made, &weight)| made.tensors[index].affine(weight, 0.0));
            let first = terms.next().unwrap_or_else(|| last.tensors[index].zeros_like())?;
            terms.try_fold(first, |sum, term| sum + term?)
        };
        (0..last.tensors.len()).map(sum).collect()
    }
}

/// Factors of the values at `places` in the value at `place` of the polynomial through them.
fn lagrange(places: &[f64], place: f64) -> Vec<f64> {
    let factor = |(own, &at): (usize, &f64)| {
        let others = places.iter().enumerate().filter(|(other, _)| *other != own);
        others.map(|(_, &other)| (place - other) / (at - other)).product()
    };
    places.iter().enumerate().map(factor).collect()
}
