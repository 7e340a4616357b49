//! Self-attention over the pixels of a picture.

use crate::error::Result;
use crate::layers::attention::Attention;
use crate::layers::norm::Norm;
use crate::structure::Site;
use candle_core::Tensor;
use secateur_nn::{Context, GroupNorm};

/// Samples x channels x height x width to samples x pixels x channels.
pub(crate) fn tokens_of(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
}

/// The other way, to the shape of `like`.
pub(crate) fn pixels_of(tokens: &Tensor, like: &Tensor) -> Result<Tensor> {
    Ok(tokens.transpose(1, 2)?.contiguous()?.reshape(like.shape())?)
}

/// Self-attention over the pixels, around which the input goes.
pub(crate) struct PixelAttention {
    group_norm: GroupNorm,
    attention: Attention,
}

impl PixelAttention {
    pub(crate) fn new(channels: usize, heads: usize, norm: Norm, site: &Site<'_>) -> Result<Self> {
        Ok(Self {
            group_norm: norm.over(channels, &site.at("group_norm"))?,
            attention: Attention::new(channels, None, heads, true, site)?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let y = tokens_of(&self.group_norm.forward(x)?)?;
        let y = self.attention.forward(&y, &y, None, context)?;
        Ok((x + pixels_of(&y, x)?)?)
    }
}
