//! Self-attention over the pixels of a picture.

use crate::error::Result;
use crate::layers::attention::Attention;
use crate::layers::norm::Norm;
use crate::structure::Site;
use candle_core::Tensor;
use secateur_nn::{Context, GroupNorm, ops};

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
        let (_, _, height, width) = x.dims4()?;
        let y = ops::tokens(&self.group_norm.forward(x)?)?;
        let y = self.attention.forward(&y, &y, None, context)?;
        Ok(ops::add(x, &ops::pixels(&y, (height, width))?)?)
    }
}
