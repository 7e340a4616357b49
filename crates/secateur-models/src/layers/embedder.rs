//! Embeddings of times, sizes and texts.

use crate::error::Result;
use crate::structure::Site;
use candle_core::Tensor;
use secateur_nn::{Activation, Context, Linear, Placement};

/// `TimestepEmbedding`: two linears with an activation between.
pub(crate) struct Embedder {
    linear_1: Linear,
    activation: Activation,
    linear_2: Linear,
}

impl Embedder {
    pub(crate) fn new(inputs: usize, width: usize, site: &Site<'_>) -> Result<Self> {
        Ok(Self {
            linear_1: site.at("linear_1").linear(inputs, width)?,
            activation: Activation::Silu,
            linear_2: site.at("linear_2").linear(width, width)?,
        })
    }

    /// `PixArtAlphaTextProjection`.
    pub(crate) fn of_text(inputs: usize, width: usize, site: &Site<'_>) -> Result<Self> {
        Ok(Self { activation: Activation::GeluTanh, ..Self::new(inputs, width, site)? })
    }

    pub(crate) fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let x = self.linear_1.forward_activated(x, self.activation, context)?;
        Ok(self.linear_2.forward(&x, context)?)
    }
}

/// `Timesteps`: how numbers become sines and cosines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sinusoids {
    /// Sines and cosines for each number.
    pub(crate) channels: usize,
    /// Cosines first.
    pub(crate) flip_sin_to_cos: bool,
    /// The lowest frequency is 1 / 10000 for 1, a little higher for 0.
    pub(crate) freq_shift: f64,
}

impl Sinusoids {
    /// Encodes each of `values` as a row, at `placement`: values x channels.
    pub(crate) fn of(self, values: &[f32], placement: &Placement) -> Result<Tensor> {
        let half = self.channels / 2;
        let slope = -(10000f32.ln()) / (half as f32 - self.freq_shift as f32);
        let frequencies: Vec<f32> = (0..half).map(|i| (slope * i as f32).exp()).collect();
        let mut rows = Vec::with_capacity(values.len() * self.channels);
        for &value in values {
            let angles = frequencies.iter().map(|frequency| value * frequency);
            let sines = angles.clone().map(f32::sin);
            let cosines = angles.map(f32::cos);
            match self.flip_sin_to_cos {
                true => rows.extend(cosines.chain(sines)),
                false => rows.extend(sines.chain(cosines)),
            }
            rows.resize(rows.len() + self.channels % 2, 0.0);
        }
        Ok(placement.tensor(rows, (values.len(), self.channels))?)
    }
}
