//! The block that SD3 and FLUX have in common: an image and a text stream, each with weights of its own, that attend to
//! both.

use crate::blocks::{FeedForward, Gate, Modulation, gated, modulate};
use crate::conditioning::Multiplicity;
use crate::error::{Error, Result};
use crate::structure::{Block, Layer, Operation, UnitKind};
use candle_core::Tensor;
use secateur_nn::{Context, Linear, RmsNorm, Scope, ops};

/// What a block is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JointConfig {
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// RMS norms of query and key.
    pub(crate) qk_norm: bool,
    /// A second attention, of the image alone.
    pub(crate) dual: bool,
    /// The text stream ends with it.
    pub(crate) context_pre_only: bool,
}

impl JointConfig {
    pub(crate) fn width(self) -> usize {
        self.heads * self.head_dim
    }

    /// The most numbers of one sample that are alive at once, in one of three places of a block: joint attention (both
    /// streams, what is joined of them, the result), and the feed-forward of either stream (its residual, its input or
    /// output, its hidden layer four times as wide) beside the other one and what attention left for it. The parts of the
    /// modulations are alive throughout.
    pub(crate) fn activations(self, image: usize, text: usize) -> usize {
        let attention = 5 * (image + text);
        let image_feed_forward = 6 * image + 2 * text;
        let text_feed_forward = image + 6 * text;
        let modulations = if self.dual { 15 } else { 12 };
        let widths = attention.max(image_feed_forward).max(text_feed_forward) + modulations;
        widths * self.width()
    }

    /// The block's layers, for so many tokens.
    pub(crate) fn structure(self, prefix: String, image: usize, text: usize) -> Block {
        use UnitKind::{AttentionOutput, FeedForwardDown, FeedForwardUp, QueryKeyValue};
        let (width, inner) = (self.width(), 4 * self.width());
        let Self { dual, context_pre_only: last, .. } = self;
        let mut layers = Vec::new();
        let linear = |layer: &str, rows, inputs, outputs, prunable: Option<(UnitKind, &str)>| {
            let layer = Layer::linear(format!("{prefix}.{layer}"), rows, inputs, outputs);
            match prunable {
                Some((unit, input)) => layer.prunable(unit, &format!("{prefix}.{input}").into()),
                None => layer,
            }
        };
        let attention = |module: &str, tokens| Layer {
            name: format!("{prefix}.{module}").into(),
            operation: Operation::Attention { queries: tokens, keys: tokens, width },
            prunable: None,
        };
        layers.push(linear("norm1.linear", 1, width, if dual { 9 } else { 6 } * width, None));
        layers.push(linear("norm1_context.linear", 1, width, if last { 2 } else { 6 } * width, None));
        let streams = [("attn.to_", "", image), ("attn.add_", "_proj", text)];
        for (before, after, rows) in streams {
            let input = format!("{before}q{after}");
            for projection in ["q", "k", "v"] {
                let name = format!("{before}{projection}{after}");
                layers.push(linear(&name, rows, width, width, Some((QueryKeyValue, &input))));
            }
        }
        if dual {
            for name in ["attn2.to_q", "attn2.to_k", "attn2.to_v"] {
                layers.push(linear(name, image, width, width, Some((QueryKeyValue, "attn2.to_q"))));
            }
        }
        layers.push(attention("attn", image + text));
        let mut single = |name: &str, rows, inputs, outputs, unit| {
            layers.push(linear(name, rows, inputs, outputs, Some((unit, name))));
        };
        single("attn.to_out.0", image, width, width, AttentionOutput);
        if !last {
            single("attn.to_add_out", text, width, width, AttentionOutput);
        }
        if dual {
            single("attn2.to_out.0", image, width, width, AttentionOutput);
        }
        single("ff.net.0.proj", image, width, inner, FeedForwardUp);
        if !last {
            single("ff_context.net.0.proj", text, width, inner, FeedForwardUp);
        }
        single("ff.net.2", image, inner, width, FeedForwardDown);
        if !last {
            single("ff_context.net.2", text, inner, width, FeedForwardDown);
        }
        if dual {
            layers.push(attention("attn2", image));
        }
        Block { name: prefix, layers }
    }
}

/// Query, key and value projections of one stream, with the optional norms of query and key.
pub(crate) struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
}

impl Projections {
    /// `names`: of the three linears and the two norms.
    pub(crate) fn new(config: JointConfig, names: [&str; 5], scope: &Scope<'_>) -> Result<Self> {
        const EPS: f32 = 1e-6;
        let width = config.width();
        let linear = |name: &str| Linear::new(width, width, &scope.at(name));
        let norm = |name: &str| RmsNorm::new(config.head_dim, EPS, &scope.at(name));
        let norms = match config.qk_norm {
            true => Some((norm(names[3])?, norm(names[4])?)),
            false => None,
        };
        Ok(Self { q: linear(names[0])?, k: linear(names[1])?, v: linear(names[2])?, norms })
    }

    /// Query, key and value of `x`, which is dropped as soon as it is projected; `rotation` turns the first two of them.
    pub(crate) fn forward(&self, x: Tensor, rotation: Option<&Tensor>, context: &Context<'_>) -> Result<[Tensor; 3]> {
        let (mut q, mut k) = (self.q.forward(&x, context)?, self.k.forward(&x, context)?);
        let v = self.v.forward(&x, context)?;
        drop(x);
        if let Some((norm_q, norm_k)) = &self.norms {
            q = norm_q.forward(&q)?;
            k = norm_k.forward(&k)?;
        }
        if let Some(rotation) = rotation {
            let _span = tracing::trace_span!("rotation").entered();
            q = ops::rope(&q, rotation)?;
            k = ops::rope(&k, rotation)?;
        }
        Ok([q, k, v])
    }
}

/// The projections of the image, and of a stream of both.
pub(crate) const IMAGE: [&str; 5] = ["to_q", "to_k", "to_v", "norm_q", "norm_k"];
const TEXT: [&str; 5] = ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"];

/// The image-only attention of SD3.5-medium's first blocks.
struct DualAttention {
    projections: Projections,
    to_out: Linear,
}

impl DualAttention {
    fn forward(&self, x: Tensor, heads: usize, context: &Context<'_>) -> Result<Tensor> {
        let [q, k, v] = self.projections.forward(x, None, context)?;
        let y = {
            let _span = tracing::trace_span!("attention").entered();
            ops::attention(&q, &k, &v, heads, None, false)?
        };
        Ok(self.to_out.forward(&y, context)?)
    }
}

/// The text stream of a block after attention.
struct TextOutput {
    to_add_out: Linear,
    ff_context: FeedForward,
}

/// `JointTransformerBlock` of SD3, and `FluxTransformerBlock`.
pub(crate) struct JointBlock {
    norm1: Linear,
    norm1_context: Linear,
    image: Projections,
    text: Projections,
    to_out: Linear,
    dual: Option<DualAttention>,
    ff: FeedForward,
    text_output: Option<TextOutput>,
    heads: usize,
}

impl JointBlock {
    pub(crate) fn new(config: JointConfig, scope: &Scope<'_>) -> Result<Self> {
        let width = config.width();
        let JointConfig { heads, dual, context_pre_only: last, .. } = config;
        let attn = scope.at("attn");
        let to_out = |scope: Scope<'_>| Linear::new(width, width, &scope.at("to_out.0"));
        let dual_attention = match dual {
            true => {
                let scope = scope.at("attn2");
                let projections = Projections::new(config, IMAGE, &scope)?;
                Some(DualAttention { projections, to_out: to_out(scope)? })
            }
            false => None,
        };
        let text_output = match last {
            true => None,
            false => Some(TextOutput {
                to_add_out: Linear::new(width, width, &attn.at("to_add_out"))?,
                ff_context: FeedForward::new(width, Gate::GeluTanh, &scope.at("ff_context"))?,
            }),
        };
        let modulation = |count, name: &str| Linear::new(width, count * width, &scope.at(name).at("linear"));
        Ok(Self {
            norm1: modulation(if dual { 9 } else { 6 }, "norm1")?,
            norm1_context: modulation(if last { 2 } else { 6 }, "norm1_context")?,
            image: Projections::new(config, IMAGE, &attn)?,
            text: Projections::new(config, TEXT, &attn)?,
            to_out: to_out(attn.clone())?,
            dual: dual_attention,
            ff: FeedForward::new(width, Gate::GeluTanh, &scope.at("ff"))?,
            text_output,
            heads,
        })
    }

    /// One block over both streams; `time` is SiLU of the time and text embedding, `rotation` has the angles of the image
    /// tokens where they have any. A text stream that ends here comes back as it went in.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        text: Tensor,
        time: &Tensor,
        rotation: Option<&Tensor>,
        multiplicity: Option<&Multiplicity>,
        context: &Context<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let text_context = Context { multiplicity: multiplicity.map(|m| &*m.of_text), ..*context };
        let image = Modulation::new(&self.norm1, time, context)?;
        let words = Modulation::new(&self.norm1_context, time, context)?;
        // AdaLayerNormZero orders its parts shift, scale, gate; AdaLayerNormContinuous scale, shift.
        let (scale, shift) = if self.text_output.is_some() { (1, 0) } else { (0, 1) };
        let norm_x = modulate(&x, &image.part(1)?, &image.part(0)?)?;
        let norm_text = modulate(&text, &words.part(scale)?, &words.part(shift)?)?;
        let (attention, text_attention) = self.attend(norm_x, norm_text, rotation, multiplicity, context)?;
        // The second attention reads the block's input, so it comes before the first is added.
        let dual = match &self.dual {
            Some(dual) => {
                let y = dual.forward(modulate(&x, &image.part(7)?, &image.part(6)?)?, self.heads, context)?;
                Some((image.part(8)?, y))
            }
            None => None,
        };
        let mut x = gated(x, &image.part(2)?, self.to_out.forward(&attention, context)?)?;
        drop(attention);
        if let Some((gate, y)) = dual {
            x = gated(x, &gate, y)?;
        }
        let y = self.ff.forward(modulate(&x, &image.part(4)?, &image.part(3)?)?, context)?;
        x = gated(x, &image.part(5)?, y)?;

        let Some(output) = &self.text_output else { return Ok((x, text)) };
        let text = gated(text, &words.part(2)?, output.to_add_out.forward(&text_attention, &text_context)?)?;
        drop(text_attention);
        let y = modulate(&text, &words.part(4)?, &words.part(3)?)?;
        let y = output.ff_context.forward(y, &text_context)?;
        Ok((x, gated(text, &words.part(5)?, y)?))
    }

    /// Joint attention of both streams, which are dropped as soon as they are projected.
    fn attend(
        &self,
        x: Tensor,
        text: Tensor,
        rotation: Option<&Tensor>,
        multiplicity: Option<&Multiplicity>,
        context: &Context<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let text_context = Context { multiplicity: multiplicity.map(|m| &*m.of_text), ..*context };
        let [q, k, v] = self.image.forward(x, rotation, context)?;
        let [text_q, text_k, text_v] = self.text.forward(text, None, &text_context)?;
        let _span = tracing::trace_span!("attention").entered();
        let bias = multiplicity.map(|m| Ok::<_, Error>(m.key_bias(q.dim(1)?))).transpose()?;
        let streams = [[&q, &k, &v], [&text_q, &text_k, &text_v]];
        let mut outputs = ops::joint_attention(&streams, self.heads, bias)?.into_iter();
        match (outputs.next(), outputs.next()) {
            (Some(x), Some(text)) => Ok((x, text)),
            _ => Err(Error::Request("joint attention of two streams gave fewer".into())),
        }
    }
}
