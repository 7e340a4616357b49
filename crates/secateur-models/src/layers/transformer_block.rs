//! `BasicTransformerBlock`.

use crate::error::Result;
use crate::layers::attention::Attention;
use crate::layers::feed_forward::{FeedForward, Gate};
use crate::structure::Site;
use candle_core::Tensor;
use secateur_nn::{Context, LayerNorm, ops};

/// `BasicTransformerBlock` with layer norms: attention of tokens to themselves and to the text,
/// feed-forward.
pub(crate) struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    /// `text`: width of the text states; `inner`: hidden neurons of the feed-forward.
    pub(crate) fn new(
        width: usize,
        text: usize,
        heads: usize,
        inner: usize,
        site: &Site<'_>,
    ) -> Result<Self> {
        const EPS: f32 = 1e-5;
        let norm = |name: &str| LayerNorm::new(width, EPS, &site.at(name));
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(width, None, heads, false, &site.at("attn1"))?,
            norm2: norm("norm2")?,
            attn2: Attention::new(width, Some(text), heads, false, &site.at("attn2"))?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(width, inner, Gate::Geglu, &site.at("ff"))?,
        })
    }

    pub(crate) fn forward(
        &self,
        mut x: Tensor,
        text: &Tensor,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        x = {
            let y = self.norm1.forward(&x)?;
            ops::add(&x, &self.attn1.forward(&y, &y, None, context)?)?
        };
        x = {
            let y = self.norm2.forward(&x)?;
            ops::add(&x, &self.attn2.forward(&y, text, None, context)?)?
        };
        let y = self.norm3.forward(&x)?;
        Ok(ops::add(&x, &self.ff.forward(y, context)?)?)
    }
}
