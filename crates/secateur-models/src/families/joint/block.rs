//! The block that SD3 and FLUX have in common: an image and a text stream, each with weights of its
//! own, that attend to both.

use crate::conditioning::Multiplicity;
use crate::error::{Result, refuse};
use crate::layers::{FeedForward, Gate, Heads, Modulation, stream};
use crate::structure::{Between, Role, Rows, Site};
use candle_core::Tensor;
use secateur_nn::{Context, Linear, RmsNorm, Scope, ops};

/// The options of a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JointConfig {
    pub(crate) heads: usize,
    pub(crate) head_dim: usize,
    /// Hidden neurons of a feed-forward, per number of a token.
    pub(crate) mlp_ratio: usize,
    /// RMS norms of query and key.
    pub(crate) qk_norm: bool,
    /// Rotary positions of the image.
    pub(crate) rotary: bool,
    /// A second attention, of the image alone.
    pub(crate) dual: bool,
    /// Whether it is the last block of the text stream.
    pub(crate) context_pre_only: bool,
}

impl JointConfig {
    pub(crate) fn width(self) -> usize {
        self.heads * self.head_dim
    }

    /// Hidden neurons of a feed-forward.
    pub(crate) fn ff_inner_dim(self) -> usize {
        self.mlp_ratio * self.width()
    }

    /// The heads of the attention at `scope`.
    pub(crate) fn heads_at(self, scope: &Scope<'_>) -> Heads {
        Heads::new(self.heads, self.head_dim, scope)
    }

    pub(crate) fn between(self) -> Between {
        Between { norm: self.qk_norm, rotary: self.rotary }
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
    /// `names`: of the three linears; `norms`: of the norms of the first two; `site`: for what may
    /// be pruned.
    pub(crate) fn new(
        config: JointConfig,
        names: [&str; 3],
        norms: [&str; 2],
        site: &Site<'_>,
    ) -> Result<Self> {
        let heads = config.heads_at(site);
        let linear = |name: &str, outputs| site.at(name).linear(config.width(), outputs);
        let norm = |name: &str| RmsNorm::new(config.head_dim, EPS, &site.at(name));
        let norms = match config.qk_norm {
            true => Some((norm(norms[0])?, norm(norms[1])?)),
            false => None,
        };
        let (query_key, value) = (heads.query_key_width(), heads.value_width());
        let (q, k) = (linear(names[0], query_key)?, linear(names[1], query_key)?);
        Ok(Self { q, k, v: linear(names[2], value)?, norms })
    }

    /// Query, key and value of `x`, which is dropped as soon as it is projected; `rotation` turns
    /// the first two of them.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        rotation: Option<&Tensor>,
        context: &Context<'_>,
    ) -> Result<[Tensor; 3]> {
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
pub(crate) const IMAGE: [&str; 3] = ["to_q", "to_k", "to_v"];
const TEXT: [&str; 3] = ["add_q_proj", "add_k_proj", "add_v_proj"];
/// The norms of their queries and keys.
pub(crate) const IMAGE_NORMS: [&str; 2] = ["norm_q", "norm_k"];
const TEXT_NORMS: [&str; 2] = ["norm_added_q", "norm_added_k"];
/// Of all norms.
pub(crate) const EPS: f32 = 1e-6;

/// The image-only attention of SD3.5-medium's first blocks.
struct DualAttention {
    projections: Projections,
    to_out: Linear,
    heads: Heads,
}

impl DualAttention {
    fn forward(&self, x: Tensor, context: &Context<'_>) -> Result<Tensor> {
        let [q, k, v] = self.projections.forward(x, None, context)?;
        let y = {
            let _span = tracing::trace_span!("attention").entered();
            ops::attention(&q, &k, &v, self.heads.scaled(), None, false)?
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
    heads: Heads,
}

impl JointBlock {
    /// `site`: for the image's tokens.
    pub(crate) fn new(config: JointConfig, site: &Site<'_>) -> Result<Self> {
        let width = config.width();
        let JointConfig { dual, context_pre_only: last, .. } = config;
        // Shift, scale and gate of each attention and feed-forward; where the text ends, shift and
        // scale of its norm.
        let (of_image, of_text) = (if dual { 9 } else { 6 }, if last { 2 } else { 6 });
        let site = &site.beside([(Rows::Fixed(1), (of_image + of_text) * width)]);
        let text = &site.over(Rows::Text);
        let modulation =
            |count, name: &str| site.once().at(name).at("linear").linear(width, count * width);
        let norm1 = modulation(of_image, "norm1")?;
        let norm1_context = modulation(of_text, "norm1_context")?;
        let (attn, attn_text) = (site.at("attn"), text.at("attn"));
        let projections = |names, norms, attn: &Site<'_>| {
            Projections::new(config, names, norms, &attn.prunable(Role::QueryKeyValue))
        };
        let image = projections(IMAGE, IMAGE_NORMS, &attn)?;
        let words = projections(TEXT, TEXT_NORMS, &attn_text)?;
        let heads = config.heads_at(&attn);
        let of_text = stream(&attn, TEXT, if last { None } else { Some("to_add_out") });
        let streams = vec![stream(&attn, IMAGE, Some("to_out.0")), of_text];
        let both = attn.with_text();
        heads.record(streams, both.rows(), config.between(), &both);
        // Both streams, their queries, keys and values, and the result.
        both.alive([(both.rows(), 5 * width)]);
        let output = |heads: Heads, attn: &Site<'_>, name: &str| {
            let site = attn.prunable(Role::AttentionOutput).at(name);
            site.linear(heads.value_width(), width)
        };
        let to_out = output(heads, &attn, "to_out.0")?;
        let to_add_out = (!last).then(|| output(heads, &attn_text, "to_add_out")).transpose()?;
        let dual_attention = || -> Result<DualAttention> {
            let attn = site.at("attn2");
            let heads = config.heads_at(&attn);
            let projections = projections(IMAGE, IMAGE_NORMS, &attn)?;
            let streams = vec![stream(&attn, IMAGE, Some("to_out.0"))];
            heads.record(streams, attn.rows(), config.between(), &attn);
            Ok(DualAttention { projections, to_out: output(heads, &attn, "to_out.0")?, heads })
        };
        let dual = dual.then(dual_attention).transpose()?;
        let feed_forward = |site: &Site<'_>, name: &str, other| {
            let site = site.beside([other]).at(name);
            FeedForward::new(width, config.ff_inner_dim(), Gate::GeluTanh, &site)
        };
        // Beside that of the image the text, and what attention left for it.
        let ff = feed_forward(site, "ff", (Rows::Text, 2 * width))?;
        let text_output = |to_add_out| -> Result<TextOutput> {
            let ff_context = feed_forward(text, "ff_context", (site.rows(), width))?;
            Ok(TextOutput { to_add_out, ff_context })
        };
        let text_output = to_add_out.map(text_output).transpose()?;
        Ok(Self { norm1, norm1_context, image, text: words, to_out, dual, ff, text_output, heads })
    }

    /// Computes the block over both streams. `time` is SiLU of the embedding of time and text;
    /// `rotation` has the angles of the image tokens, if there are any. If the text stream ends
    /// here, its tokens are returned unchanged.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        text: Tensor,
        time: &Tensor,
        rotation: Option<&Tensor>,
        multiplicity: Option<&Multiplicity>,
        context: &Context<'_>,
    ) -> Result<[Tensor; 2]> {
        let text_context = Context { multiplicity: multiplicity.map(|m| &m.of_text), ..*context };
        let image = Modulation::new(&self.norm1, time, context)?;
        let words = Modulation::new(&self.norm1_context, time, context)?;
        // AdaLayerNormZero orders its parts shift, scale, gate; AdaLayerNormContinuous scale,
        // shift.
        let (scale, shift) = if self.text_output.is_some() { (1, 0) } else { (0, 1) };
        let norm_x = image.norm(&x, 0, 1, EPS)?;
        let norm_text = words.norm(&text, shift, scale, EPS)?;
        let (attention, text_attention) =
            self.attend(norm_x, norm_text, rotation, multiplicity, context)?;
        // The second attention reads the block's input, so it comes before the first is added.
        let dual = match &self.dual {
            Some(dual) => Some(dual.forward(image.norm(&x, 6, 7, EPS)?, context)?),
            None => None,
        };
        let mut x = image.gated(x, 2, self.to_out.forward(&attention, context)?)?;
        drop(attention);
        if let Some(y) = dual {
            x = image.gated(x, 8, y)?;
        }
        let y = self.ff.forward(image.norm(&x, 3, 4, EPS)?, context)?;
        x = image.gated(x, 5, y)?;

        let Some(output) = &self.text_output else { return Ok([x, text]) };
        let text =
            words.gated(text, 2, output.to_add_out.forward(&text_attention, &text_context)?)?;
        drop(text_attention);
        let y = output.ff_context.forward(words.norm(&text, 3, 4, EPS)?, &text_context)?;
        Ok([x, words.gated(text, 5, y)?])
    }

    /// Joint attention of both streams. Each input is dropped as soon as it is projected.
    fn attend(
        &self,
        x: Tensor,
        text: Tensor,
        rotation: Option<&Tensor>,
        multiplicity: Option<&Multiplicity>,
        context: &Context<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let text_context = Context { multiplicity: multiplicity.map(|m| &m.of_text), ..*context };
        let [q, k, v] = self.image.forward(x, rotation, context)?;
        let [text_q, text_k, text_v] = self.text.forward(text, None, &text_context)?;
        let _span = tracing::trace_span!("attention").entered();
        let bias = multiplicity.map(|m| &m.key_bias);
        let streams = [[&q, &k, &v], [&text_q, &text_k, &text_v]];
        let mut outputs = ops::joint_attention(&streams, self.heads.scaled(), bias)?.into_iter();
        match (outputs.next(), outputs.next()) {
            (Some(x), Some(text)) => Ok((x, text)),
            _ => refuse!("joint attention of two streams gave fewer"),
        }
    }
}
