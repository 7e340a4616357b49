//! `ResnetBlock2D`.

use crate::error::Result;
use crate::layers::norm::Norm;
use candle_core::Tensor;
use secateur_nn::{Context, Conv2d, GroupNorm, Linear, Scope};

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
        scope: &Scope<'_>,
    ) -> Result<Self> {
        let conv_shortcut = if inputs == outputs {
            None
        } else {
            Some(Conv2d::new((inputs, outputs), 1, 1, (0, 0), &scope.at("conv_shortcut"))?)
        };
        let time_emb_proj = time
            .map(|width| Linear::new(width, outputs, &scope.at("time_emb_proj")))
            .transpose()?;
        Ok(Self {
            norm1: norm.over(inputs, &scope.at("norm1"))?,
            conv1: Conv2d::new((inputs, outputs), 3, 1, (1, 1), &scope.at("conv1"))?,
            time_emb_proj,
            norm2: norm.over(outputs, &scope.at("norm2"))?,
            conv2: Conv2d::new((outputs, outputs), 3, 1, (1, 1), &scope.at("conv2"))?,
            conv_shortcut,
        })
    }

    /// `time`: SiLU of the time embedding, samples x its width, where the block takes one.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        time: Option<&Tensor>,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let mut y = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        if let (Some(proj), Some(time)) = (&self.time_emb_proj, time) {
            let (samples, channels, ..) = y.dims4()?;
            y =
                y.broadcast_add(&proj.forward(time, context)?.reshape((samples, channels, 1, 1))?)?;
        }
        let y = self.conv2.forward(&self.norm2.forward_silu(&y)?)?;
        match &self.conv_shortcut {
            Some(shortcut) => Ok((shortcut.forward(x)? + y)?),
            None => Ok((x + y)?),
        }
    }
}
