//! `ResnetBlock2D`.

use crate::error::Result;
use crate::layers::norm::Norm;
use crate::structure::Site;
use candle_core::Tensor;
use secateur_nn::{Context, Conv2d, GroupNorm, Linear, ops};

/// `ResnetBlock2D`: two convolutions around which the input goes, with the time added between them
/// where there is one.
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// `time`: width of the time embedding.
    pub(crate) fn new(
        inputs: usize,
        outputs: usize,
        time: Option<usize>,
        norm: Norm,
        site: &Site<'_>,
    ) -> Result<Self> {
        // Input, its norm, the first convolution; or input, result, shortcut and their sum.
        site.alive([(site.rows(), (2 * inputs + outputs).max(inputs + 3 * outputs))]);
        let time_emb_proj = |width| site.once().at("time_emb_proj").linear(width, outputs);
        let shortcut = || site.at("conv_shortcut").convolution((inputs, outputs), 1);
        Ok(Self {
            norm1: norm.over(inputs, &site.at("norm1"))?,
            conv1: site.at("conv1").convolution((inputs, outputs), 3)?,
            time_emb_proj: time.map(time_emb_proj).transpose()?,
            norm2: norm.over(outputs, &site.at("norm2"))?,
            conv2: site.at("conv2").convolution((outputs, outputs), 3)?,
            conv_shortcut: (inputs != outputs).then(shortcut).transpose()?,
        })
    }

    /// `time`: SiLU of the time embedding, samples x its width, where the block takes one.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        time: Option<&Tensor>,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let mut y = self.conv1.forward(&self.norm1.forward_silu(x)?, context)?;
        if let (Some(proj), Some(time)) = (&self.time_emb_proj, time) {
            y = ops::add_to_channels(&y, &proj.forward(time, context)?)?;
        }
        let y = self.conv2.forward(&self.norm2.forward_silu(&y)?, context)?;
        match &self.conv_shortcut {
            Some(shortcut) => Ok(ops::add(&shortcut.forward(x, context)?, &y)?),
            None => Ok(ops::add(x, &y)?),
        }
    }
}
