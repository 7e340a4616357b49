//! What several families are built of.

use crate::conditioning::Multiplicity;
use crate::error::Result;
use crate::structure::{Between, Block, HeadGroup, HeadStream, Layer, NeuronGroup, Operation, Pair, Slice, UnitKind};
use candle_core::{Device, Tensor};
use secateur_nn::{Activation, Context, Conv2d, GroupNorm, LayerName, LayerNorm, Linear, Scope, ops};
use serde::Deserialize;
use std::sync::Arc;

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
        let y = self.attention.forward(&y, &y, None, context)?;
        Ok((x + pixels_of(&y, x)?)?)
    }
}

/// The heads of an attention, as they are left of what its configuration says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    count: usize,
    /// By the configuration: scores keep their scale when heads become narrower.
    head_dim: usize,
    query_key: usize,
    value: usize,
}

impl Heads {
    /// Of the module at `scope`, with `count` heads of `head_dim` by its configuration.
    pub(crate) fn new(count: usize, head_dim: usize, scope: &Scope<'_>) -> Self {
        let dimensions = |pair: Pair| scope.at(pair.suffix()).size(head_dim);
        let (query_key, value) = (dimensions(Pair::QueryKey), dimensions(Pair::ValueOutput));
        Self { count: scope.size(count), head_dim, query_key, value }
    }

    /// Rows of the projections of queries and keys.
    pub(crate) fn query_key_width(self) -> usize {
        self.count * self.query_key
    }

    /// Rows of the projection of values, columns of the output's.
    pub(crate) fn value_width(self) -> usize {
        self.count * self.value
    }

    /// As attention sees them.
    pub(crate) fn scaled(self) -> ops::Heads {
        ops::Heads::new(self.count, self.head_dim)
    }
}

/// Attention of tokens to themselves or to others.
pub(crate) struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: Heads,
}

impl Attention {
    /// Queries and result of `width`, keys and values of inputs of `others`; `bias`: of the first three linears.
    pub(crate) fn new(width: usize, others: usize, heads: usize, bias: bool, scope: &Scope<'_>) -> Result<Self> {
        let heads = Heads::new(heads, width / heads, scope);
        let linear = |inputs: usize, outputs: usize, name: &str| match bias {
            true => Linear::new(inputs, outputs, &scope.at(name)),
            false => Linear::without_bias(inputs, outputs, &scope.at(name)),
        };
        Ok(Self {
            to_q: linear(width, heads.query_key_width(), "to_q")?,
            to_k: linear(others, heads.query_key_width(), "to_k")?,
            to_v: linear(others, heads.value_width(), "to_v")?,
            to_out: Linear::new(heads.value_width(), width, &scope.at("to_out.0"))?,
            heads,
        })
    }

    /// `multiplicity`: of the `others`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        others: &Tensor,
        multiplicity: Option<&Multiplicity>,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let y = {
            let q = self.to_q.forward(x, context)?;
            let of_others = Context { multiplicity: multiplicity.map(|m| &*m.of_text), ..*context };
            let (k, v) = (self.to_k.forward(others, &of_others)?, self.to_v.forward(others, &of_others)?);
            let _span = tracing::trace_span!("attention").entered();
            ops::attention(&q, &k, &v, self.heads.scaled(), multiplicity.map(|m| Arc::clone(&m.key_bias)), false)?
        };
        Ok(self.to_out.forward(&y, context)?)
    }
}

impl Block {
    /// The layers of [`Attention`] of `rows` tokens of `width` to `others` (tokens, width). `shared` stands for the input
    /// of keys and values where it is not that of the queries.
    pub(crate) fn attention(
        &mut self,
        module: &str,
        rows: usize,
        others: (usize, usize),
        (heads, width): (usize, usize),
        shared: Option<&LayerName>,
    ) {
        use UnitKind::{AttentionOutput, QueryKeyValue};
        let name = |layer: &str| LayerName::from(format!("{module}.{layer}"));
        let [q, k, v, out] = ["to_q", "to_k", "to_v", "to_out.0"].map(name);
        let shared = shared.unwrap_or(&q);
        let (keys, inputs) = others;
        let products = Operation::Attention { queries: rows, keys, query_key: width, value: width };
        self.layers.extend([
            Layer::linear(q.clone(), rows, width, width).prunable(QueryKeyValue, &q),
            Layer::linear(k.clone(), keys, inputs, width).prunable(QueryKeyValue, shared),
            Layer::linear(v.clone(), keys, inputs, width).prunable(QueryKeyValue, shared),
            Layer { name: module.into(), operation: products, prunable: None },
            Layer::linear(out.clone(), rows, width, width).prunable(AttentionOutput, &out),
        ]);
        let [query, key, value, output] = [q, k, v, out].map(Slice::whole);
        self.heads.push(HeadGroup {
            name: module.into(),
            count: heads,
            query_key: width / heads,
            value: width / heads,
            streams: vec![HeadStream { query, key, value, output: Some(output) }],
            between: Between::default(),
        });
    }

    /// The layers of attention of the tokens of all `streams` to each other; `heads` counts them and gives their width.
    pub(crate) fn joint_attention(
        &mut self,
        module: &str,
        streams: &[StreamLayers<'_>],
        (count, head_dim): (usize, usize),
        between: Between,
    ) {
        use UnitKind::{AttentionOutput, QueryKeyValue};
        let width = count * head_dim;
        let name = |layer: &str| LayerName::from(format!("{module}.{layer}"));
        for stream in streams {
            let input = name(stream.projections[0]);
            let linear = |layer: &str| Layer::linear(name(layer), stream.tokens, width, width);
            self.layers.extend(stream.projections.map(|layer| linear(layer).prunable(QueryKeyValue, &input)));
        }
        let tokens = streams.iter().map(|stream| stream.tokens).sum();
        let products = Operation::Attention { queries: tokens, keys: tokens, query_key: width, value: width };
        self.layers.push(Layer { name: module.into(), operation: products, prunable: None });
        for stream in streams {
            let output = stream.output.map(|layer| Layer::linear(name(layer), stream.tokens, width, width));
            self.layers.extend(output.map(|layer| layer.clone().prunable(AttentionOutput, &layer.name)));
        }
        let described = |stream: &StreamLayers<'_>| {
            let [query, key, value] = stream.projections.map(|layer| Slice::whole(name(layer)));
            HeadStream { query, key, value, output: stream.output.map(|layer| Slice::whole(name(layer))) }
        };
        let streams = streams.iter().map(described).collect();
        let (query_key, value) = (head_dim, head_dim);
        self.heads.push(HeadGroup { name: module.into(), count, query_key, value, streams, between });
    }

    /// The layers of [`FeedForward`] over `rows` tokens.
    pub(crate) fn feed_forward(&mut self, module: &str, rows: usize, width: usize, gate: Gate) {
        let [up, down] = ["net.0.proj", "net.2"].map(|layer| LayerName::from(format!("{module}.{layer}")));
        let hidden = 4 * width;
        self.layers.extend([
            Layer::linear(up.clone(), rows, width, gate.parts() * hidden).prunable(UnitKind::FeedForwardUp, &up),
            Layer::linear(down.clone(), rows, hidden, width).prunable(UnitKind::FeedForwardDown, &down),
        ]);
        self.neurons.push(NeuronGroup {
            name: module.into(),
            count: hidden,
            up: (0..gate.parts()).map(|part| Slice { layer: up.clone(), start: part * hidden }).collect(),
            down: Slice::whole(down),
        });
    }
}

/// One stream of a joint attention.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLayers<'a> {
    pub(crate) tokens: usize,
    /// Names of query, key and value.
    pub(crate) projections: [&'a str; 3],
    /// Name of the output; none where nothing reads the stream afterwards.
    pub(crate) output: Option<&'a str>,
}

/// What a feed-forward does between its linears.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Gate {
    /// GELU.
    #[default]
    Gelu,
    /// GELU by tanh.
    GeluTanh,
    /// Half of the first linear's outputs times GELU of the other half.
    Geglu,
}

impl Gate {
    /// Outputs of the first linear a hidden neuron.
    pub(crate) fn parts(self) -> usize {
        match self {
            Self::Gelu | Self::GeluTanh => 1,
            Self::Geglu => 2,
        }
    }

    /// Numbers of the hidden layer alive at once, a number of the input.
    pub(crate) fn alive(self) -> usize {
        match self {
            Self::Gelu | Self::GeluTanh => 4,
            Self::Geglu => 8 + 4,
        }
    }
}

/// By the name that configurations give it, `activation_fn`.
impl TryFrom<String> for Gate {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        match name.as_str() {
            "gelu" => Ok(Self::Gelu),
            "gelu-approximate" => Ok(Self::GeluTanh),
            "geglu" => Ok(Self::Geglu),
            _ => Err(format!("activation_fn {name:?} is not supported; gelu, gelu-approximate and geglu are")),
        }
    }
}

/// `FeedForward`: four times as wide between its linears, unless neurons were removed.
pub(crate) struct FeedForward {
    proj: Linear,
    out: Linear,
    gate: Gate,
}

impl FeedForward {
    pub(crate) fn new(width: usize, gate: Gate, scope: &Scope<'_>) -> Result<Self> {
        let hidden = scope.size(4 * width);
        Ok(Self {
            proj: Linear::new(width, gate.parts() * hidden, &scope.at("net.0.proj"))?,
            out: Linear::new(hidden, width, &scope.at("net.2"))?,
            gate,
        })
    }

    /// The input is dropped as soon as it is projected.
    pub(crate) fn forward(&self, x: Tensor, context: &Context<'_>) -> Result<Tensor> {
        let hidden = match self.gate {
            Gate::Gelu => self.proj.forward_activated(&x, Activation::Gelu, context)?,
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
            (x + self.attn1.forward(&y, &y, None, context)?)?
        };
        x = {
            let y = self.norm2.forward(&x)?;
            (x + self.attn2.forward(&y, text, None, context)?)?
        };
        let y = self.norm3.forward(&x)?;
        Ok((x + self.ff.forward(y, context)?)?)
    }
}

/// `TimestepEmbedding`: two linears with an activation between.
pub(crate) struct Embedder {
    linear_1: Linear,
    activation: Activation,
    linear_2: Linear,
}

impl Embedder {
    pub(crate) fn new(inputs: usize, width: usize, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(inputs, width, &scope.at("linear_1"))?,
            activation: Activation::Silu,
            linear_2: Linear::new(width, width, &scope.at("linear_2"))?,
        })
    }

    /// `PixArtAlphaTextProjection`.
    pub(crate) fn of_text(inputs: usize, width: usize, scope: &Scope<'_>) -> Result<Self> {
        Ok(Self { activation: Activation::GeluTanh, ..Self::new(inputs, width, scope)? })
    }

    pub(crate) fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let x = self.linear_1.forward_activated(x, self.activation, context)?;
        Ok(self.linear_2.forward(&x, context)?)
    }
}

/// The layers of [`Embedder`] over `rows` inputs.
pub(crate) fn embedder_layers(module: &str, rows: usize, inputs: usize, width: usize) -> [Layer; 2] {
    [
        Layer::linear(format!("{module}.linear_1"), rows, inputs, width),
        Layer::linear(format!("{module}.linear_2"), rows, width, width),
    ]
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
