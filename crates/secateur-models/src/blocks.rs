//! What several families are built of.

use crate::error::Result;
use crate::structure::{Layer, Operation, UnitKind};
use candle_core::{D, Device, Tensor};
use secateur_nn::{Activation, Context, Conv2d, GroupNorm, LayerName, LayerNorm, Linear, Scope, ops};

/// How group norms are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Norm {
    pub(crate) groups: usize,
    pub(crate) eps: f32,
}

impl Norm {
    pub(crate) fn over(self, channels: usize, scope: &Scope<'_>) -> Result<GroupNorm> {
        Ok(GroupNorm::new(self.groups, channels, self.eps, scope)?)
    }
}

/// `ResnetBlock2D`: two convolutions around which the input goes, with the time added between them where there is one.
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
        let time_emb_proj = time.map(|width| Linear::new(width, outputs, &scope.at("time_emb_proj"))).transpose()?;
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
    pub(crate) fn forward(&self, x: &Tensor, time: Option<&Tensor>, context: &Context<'_>) -> Result<Tensor> {
        let mut y = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        if let (Some(proj), Some(time)) = (&self.time_emb_proj, time) {
            let (samples, channels, ..) = y.dims4()?;
            y = y.broadcast_add(&proj.forward(time, context)?.reshape((samples, channels, 1, 1))?)?;
        }
        let y = self.conv2.forward(&self.norm2.forward_silu(&y)?)?;
        match &self.conv_shortcut {
            Some(shortcut) => Ok((shortcut.forward(x)? + y)?),
            None => Ok((x + y)?),
        }
    }
}

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
    pub(crate) fn new(channels: usize, heads: usize, norm: Norm, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self {
            group_norm: norm.over(channels, &scope.at("group_norm"))?,
            attention: Attention::new(channels, channels, heads, true, scope)?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let y = tokens_of(&self.group_norm.forward(x)?)?;
        let y = self.attention.forward(&y, &y, context)?;
        Ok((x + pixels_of(&y, x)?)?)
    }
}

/// Attention of tokens to themselves or to others.
pub(crate) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl Attention {
    /// Queries and result of `width`, keys and values of inputs of `others`; `bias`: of the first three linears.
    pub(crate) fn new(width: usize, others: usize, heads: usize, bias: bool, scope: &Scope<'_>) -> Result<Self> {
        let linear = |inputs: usize, name: &str| match bias {
            true => Linear::new(inputs, width, &scope.at(name)),
            false => Linear::without_bias(inputs, width, &scope.at(name)),
        };
        Ok(Self {
            to_q: linear(width, "to_q")?,
            to_k: linear(others, "to_k")?,
            to_v: linear(others, "to_v")?,
            to_out: Linear::new(width, width, &scope.at("to_out.0"))?,
            heads,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, others: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let q = self.to_q.forward(x, context)?;
        let (k, v) = (self.to_k.forward(others, context)?, self.to_v.forward(others, context)?);
        let y = {
            let _span = tracing::trace_span!("attention").entered();
            ops::attention(&q, &k, &v, self.heads, None, false)?
        };
        Ok(self.to_out.forward(&y, context)?)
    }
}

/// The layers of [`Attention`] of `rows` tokens of `width` to `others` (tokens, width). `shared` stands for the input of
/// keys and values where it is not that of the queries.
pub(crate) fn attention_layers(
    module: &str,
    rows: usize,
    others: (usize, usize),
    width: usize,
    shared: Option<&LayerName>,
) -> Vec<Layer> {
    use UnitKind::{AttentionOutput, QueryKeyValue};
    let name = |layer: &str| LayerName::from(format!("{module}.{layer}"));
    let (q, out) = (name("to_q"), name("to_out.0"));
    let shared = shared.unwrap_or(&q);
    let (keys, inputs) = others;
    let products = Operation::Attention { queries: rows, keys, width };
    vec![
        Layer::linear(q.clone(), rows, width, width).prunable(QueryKeyValue, &q),
        Layer::linear(name("to_k"), keys, inputs, width).prunable(QueryKeyValue, shared),
        Layer::linear(name("to_v"), keys, inputs, width).prunable(QueryKeyValue, shared),
        Layer { name: module.into(), operation: products, prunable: None },
        Layer::linear(out.clone(), rows, width, width).prunable(AttentionOutput, &out),
    ]
}

/// The layers of [`FeedForward`] over `rows` tokens.
pub(crate) fn feed_forward_layers(module: &str, rows: usize, width: usize, gate: Gate) -> Vec<Layer> {
    let (up, down) = (LayerName::from(format!("{module}.net.0.proj")), LayerName::from(format!("{module}.net.2")));
    vec![
        Layer::linear(up.clone(), rows, width, gate.parts() * 4 * width).prunable(UnitKind::FeedForwardUp, &up),
        Layer::linear(down.clone(), rows, 4 * width, width).prunable(UnitKind::FeedForwardDown, &down),
    ]
}

/// What a feed-forward does between its linears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// GELU by tanh.
    GeluTanh,
    /// Half of the first linear's outputs times GELU of the other half.
    Geglu,
}

impl Gate {
    /// Outputs of the first linear a hidden neuron.
    pub(crate) fn parts(self) -> usize {
        match self {
            Self::GeluTanh => 1,
            Self::Geglu => 2,
        }
    }
}

/// `FeedForward`: four times as wide between its linears.
pub(crate) struct FeedForward {
    proj: Linear,
    out: Linear,
    gate: Gate,
}

impl FeedForward {
    pub(crate) fn new(width: usize, gate: Gate, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self {
            proj: Linear::new(width, gate.parts() * 4 * width, &scope.at("net.0.proj"))?,
            out: Linear::new(4 * width, width, &scope.at("net.2"))?,
            gate,
        })
    }

    /// The input is dropped as soon as it is projected.
    pub(crate) fn forward(&self, x: Tensor, context: &Context<'_>) -> Result<Tensor> {
        let hidden = match self.gate {
            Gate::GeluTanh => self.proj.forward_activated(&x, Activation::GeluTanh, context)?,
            Gate::Geglu => ops::geglu(&self.proj.forward(&x, context)?)?,
        };
        drop(x);
        Ok(self.out.forward(&hidden, context)?)
    }
}

/// `BasicTransformerBlock` with layer norms: attention of tokens to themselves and to the text, feed-forward.
pub(crate) struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl TransformerBlock {
    /// `text`: width of the text states.
    pub(crate) fn new(width: usize, text: usize, heads: usize, scope: &Scope<'_>) -> Result<Self> {
        const EPS: f32 = 1e-5;
        let norm = |name: &str| LayerNorm::new(width, EPS, &scope.at(name));
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::new(width, width, heads, false, &scope.at("attn1"))?,
            norm2: norm("norm2")?,
            attn2: Attention::new(width, text, heads, false, &scope.at("attn2"))?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(width, Gate::Geglu, &scope.at("ff"))?,
        })
    }

    pub(crate) fn forward(&self, mut x: Tensor, text: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        x = {
            let y = self.norm1.forward(&x)?;
            (x + self.attn1.forward(&y, &y, context)?)?
        };
        x = {
            let y = self.norm2.forward(&x)?;
            (x + self.attn2.forward(&y, text, context)?)?
        };
        let y = self.norm3.forward(&x)?;
        Ok((x + self.ff.forward(y, context)?)?)
    }
}

/// The parts into which a modulation linear's output is cut.
pub(crate) struct Modulation {
    values: Tensor,
    width: usize,
}

impl Modulation {
    pub(crate) fn new(linear: &Linear, time: &Tensor, context: &Context<'_>) -> Result<Self> {
        Ok(Self { values: linear.forward(time, context)?, width: time.dim(D::Minus1)? })
    }

    pub(crate) fn part(&self, index: usize) -> Result<Tensor> {
        Ok(self.values.narrow(1, index * self.width, self.width)?)
    }
}

/// Layer norm of `x`, times 1 + `scale`, plus `shift`.
pub(crate) fn modulate(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    const EPS: f32 = 1e-6;
    let _span = tracing::trace_span!("norm").entered();
    Ok(ops::layer_norm_modulated(x, scale, shift, EPS)?)
}

/// `x` + `gate` * `y`.
pub(crate) fn gated(x: Tensor, gate: &Tensor, y: Tensor) -> Result<Tensor> {
    let _span = tracing::trace_span!("residual").entered();
    Ok(ops::gated_add(&x, gate, &y)?)
}

/// `TimestepEmbedding`: two linears with SiLU between.
pub(crate) struct Embedder {
    linear_1: Linear,
    linear_2: Linear,
}

impl Embedder {
    pub(crate) fn new(inputs: usize, width: usize, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(inputs, width, &scope.at("linear_1"))?,
            linear_2: Linear::new(width, width, &scope.at("linear_2"))?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let x = self.linear_1.forward_activated(x, Activation::Silu, context)?;
        Ok(self.linear_2.forward(&x, context)?)
    }
}

/// `Timesteps`: how numbers become sines and cosines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sinusoids {
    /// Numbers for each one.
    pub(crate) channels: usize,
    /// Cosines first.
    pub(crate) flip_sin_to_cos: bool,
    /// The lowest frequency is 1 / 10000 for 1, a little higher for 0.
    pub(crate) freq_shift: f64,
}

impl Sinusoids {
    /// Each of `values` as a row: values x channels.
    pub(crate) fn of(self, values: &[f32]) -> Result<Tensor> {
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
        Ok(Tensor::from_vec(rows, (values.len(), self.channels), &Device::Cpu)?)
    }
}
