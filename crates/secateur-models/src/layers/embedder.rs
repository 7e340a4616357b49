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
    /// Encodes each of `values` (`f32`, at `placement`) as a row of numbers of the type that is
    /// computed in: values x channels.
    pub(crate) fn of(self, values: &Tensor, placement: &Placement) -> Result<Tensor> {
        let half = self.channels / 2;
        let slope = -(10000f32.ln()) / (half as f32 - self.freq_shift as f32);
        let frequencies = (0..half).map(|i| (slope * i as f32).exp()).collect();
        let frequencies = placement.in_f32().tensor(frequencies, (1, half))?;
        let angles = values.flatten_all()?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
        let (sines, cosines) = (angles.sin()?, angles.cos()?);
        let rows = match self.flip_sin_to_cos {
            true => Tensor::cat(&[cosines, sines], 1)?,
            false => Tensor::cat(&[sines, cosines], 1)?,
        };
        Ok(placement.bring(&rows.pad_with_zeros(1, 0, self.channels % 2)?)?)
    }
}
