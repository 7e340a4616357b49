//! What stands in for a unit that is not computed: a polynomial through what it made before.

use candle_core::Tensor;

/// What a unit made when it was last computed, the latest first.
#[derive(Clone, Debug, Default)]
pub struct Past(Vec<Made>);

/// What a unit made at a call.
#[derive(Clone, Debug)]
pub struct Made {
    /// The call, by its number.
    pub call: usize,
    /// Its timestep.
    pub timestep: f64,
    /// What was made.
    pub tensors: Vec<Tensor>,
}

impl Past {
    /// What the polynomial through it goes through, the latest first.
    #[must_use]
    pub fn made(&self) -> &[Made] {
        &self.0
    }

    /// What is known of it after something more was made, for a polynomial of degree `order`.
    pub fn push(&mut self, made: Made, order: usize) {
        // Some samplers call the denoiser twice at a timestep.
        self.0.retain(|earlier| earlier.timestep != made.timestep);
        self.0.insert(0, made);
        self.0.truncate(order + 1);
    }

    /// What all that was made is multiplied by in a forecast.
    #[must_use]
    pub fn weights(&self, timestep: f64) -> Vec<f64> {
        lagrange(&self.0.iter().map(|made| made.timestep).collect::<Vec<_>>(), timestep)
    }

    /// The polynomial at a timestep; nothing where nothing was made.
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

/// What the values at `places` are multiplied by to give that of the polynomial through them at
/// `place`.
fn lagrange(places: &[f64], place: f64) -> Vec<f64> {
    let factor = |(own, &at): (usize, &f64)| {
        let others = places.iter().enumerate().filter(|(other, _)| *other != own);
        others.map(|(_, &other)| (place - other) / (at - other)).product()
    };
    places.iter().enumerate().map(factor).collect()
}
