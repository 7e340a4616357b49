//! SD3Transformer2DModel: the joint-attention transformer (MMDiT) of SD3 and SD3.5.

use crate::blocks::{Embedder, FeedForward, Gate, Sinusoids, StreamLayers, embedder_layers};
use crate::conditioning::{Conditioning, Multiplicity};
use crate::error::{Error, Result, read_json};
use crate::family::{Denoiser, DenoiserConfig};
use crate::modulation::Modulation;
use crate::patches::{PatchEmbed, grid};
use crate::structure::{Between, Block, Geometry, Layer, Structure};
use candle_core::Tensor;
use secateur_nn::{Activation, Context, Linear, RmsNorm, Scope, ops};
use serde::Deserialize;
use std::path::Path;

const EPS: f32 = 1e-6;
/// How the timestep is told.
const TIME: Sinusoids = Sinusoids { channels: 256, flip_sin_to_cos: true, freq_shift: 0.0 };

/// Configuration of an `SD3Transformer2DModel`.
#[derive(Clone, Debug, Deserialize)]
pub struct MmditConfig {
    /// Height and width of the latents it was trained for.
    sample_size: usize,
    /// Side of a token, in latents.
    patch_size: usize,
    /// Latent channels.
    in_channels: usize,
    num_layers: usize,
    attention_head_dim: usize,
    num_attention_heads: usize,
    /// Width of the text states.
    joint_attention_dim: usize,
    caption_projection_dim: usize,
    /// Width of the pooled text.
    pooled_projection_dim: usize,
    #[serde(default)]
    out_channels: Option<usize>,
    pos_embed_max_size: usize,
    #[serde(default)]
    dual_attention_layers: Vec<usize>,
    #[serde(default)]
    qk_norm: Option<String>,
}

impl MmditConfig {
    /// Reads a component's `config.json`.
    ///
    /// # Errors
    /// If it cannot be read, contradicts itself, or asks for something that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let config: Self = read_json(path)?;
        let invalid = |problem: String| Err(Error::invalid(path, problem));
        if let Some(norm) = config.qk_norm.as_deref().filter(|norm| *norm != "rms_norm") {
            return invalid(format!("qk_norm {norm:?} is not supported"));
        }
        if config.caption_projection_dim != config.width() {
            let (caption, width) = (config.caption_projection_dim, config.width());
            return invalid(format!("caption_projection_dim {caption} differs from heads x head size {width}"));
        }
        let positive = [config.patch_size, config.in_channels, config.num_layers, config.width()];
        if positive.contains(&0) || config.sample_size < config.patch_size {
            return invalid("sizes must be positive, and sample_size no less than patch_size".into());
        }
        Ok(config)
    }

    fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Whether a block's text stream ends with it: the last one's is not read by anything.
    fn context_pre_only(&self, block: usize) -> bool {
        block + 1 == self.num_layers
    }

    fn dual(&self, block: usize) -> bool {
        self.dual_attention_layers.contains(&block)
    }

    /// The most numbers of one sample that are alive at once, in one of three places of a block: joint attention (both
    /// streams, what is joined of them, the result), and the feed-forward of either stream (its residual, its input or
    /// output, its hidden layer four times as wide) beside the other one and what attention left for it. The parts of the
    /// modulations are alive throughout.
    fn activations(&self, image: usize, text: usize) -> usize {
        let attention = 5 * (image + text);
        let image_feed_forward = 6 * image + 2 * text;
        let text_feed_forward = image + 6 * text;
        let modulations = if self.dual_attention_layers.is_empty() { 12 } else { 15 };
        let tokens = attention.max(image_feed_forward).max(text_feed_forward) + modulations;
        tokens * self.width() + text * self.joint_attention_dim
    }

    fn describe(&self, index: usize, image: usize, text: usize) -> Block {
        let prefix = format!("transformer_blocks.{index}");
        let name = |layer: &str| format!("{prefix}.{layer}");
        let width = self.width();
        let (dual, last) = (self.dual(index), self.context_pre_only(index));
        let mut block = Block::new(&prefix, &[]).with([
            Layer::linear(name("norm1.linear"), 1, width, if dual { 9 } else { 6 } * width),
            Layer::linear(name("norm1_context.linear"), 1, width, if last { 2 } else { 6 } * width),
        ]);
        let between = Between { norm: self.qk_norm.is_some(), rotary: false };
        let heads = (self.num_attention_heads, self.attention_head_dim);
        let streams = [
            StreamLayers { tokens: image, projections: IMAGE, output: Some("to_out.0") },
            StreamLayers { tokens: text, projections: TEXT, output: if last { None } else { Some("to_add_out") } },
        ];
        block.joint_attention(&name("attn"), &streams, heads, between);
        if dual {
            block.joint_attention(&name("attn2"), &streams[..1], heads, between);
        }
        block.feed_forward(&name("ff"), image, width, Gate::GeluTanh);
        if !last {
            block.feed_forward(&name("ff_context"), text, width, Gate::GeluTanh);
        }
        block
    }
}

impl DenoiserConfig for MmditConfig {
    fn build(&self, scope: &Scope<'_>) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Mmdit::new(self, scope)?))
    }

    fn latent_shape(&self) -> [usize; 3] {
        [self.in_channels, self.sample_size, self.sample_size]
    }

    fn text_width(&self) -> usize {
        self.joint_attention_dim
    }

    fn image_tokens(&self, size: (usize, usize)) -> usize {
        let (rows, columns) = grid(size, self.patch_size);
        rows * columns
    }

    fn structure(&self, geometry: &Geometry) -> Structure {
        let width = self.width();
        let patch = self.patch_size;
        let size = grid(geometry.latent, patch);
        let image = self.image_tokens(geometry.latent);
        let text = geometry.text;
        let embedders = Block::new("embedders", &[])
            .with([Layer::convolution("pos_embed.proj", size, (self.in_channels, width), patch)])
            .with(embedder_layers("time_text_embed.timestep_embedder", 1, TIME.channels, width))
            .with(embedder_layers("time_text_embed.text_embedder", 1, self.pooled_projection_dim, width))
            .with([Layer::linear("context_embedder", text, self.joint_attention_dim, width)]);
        let blocks = (0..self.num_layers).map(|index| self.describe(index, image, text)).collect();
        let output = Block::new("output", &[]).with([
            Layer::linear("norm_out.linear", 1, width, 2 * width),
            Layer::linear("proj_out", image, width, patch * patch * self.out_channels()),
        ]);
        Structure::chain(embedders, blocks, output, self.activations(image, text))
    }
}

/// Query, key and value projections of one stream, with the optional norms of query and key.
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    norms: Option<(RmsNorm, RmsNorm)>,
}

impl Projections {
    fn new(config: &MmditConfig, names: [&str; 3], norms: [&str; 2], scope: &Scope<'_>) -> Result<Self> {
        let width = config.width();
        let linear = |name: &str| Linear::new(width, width, &scope.at(name));
        let norm = |name: &str| RmsNorm::new(config.attention_head_dim, EPS, &scope.at(name));
        let norms = match config.qk_norm {
            Some(_) => Some((norm(norms[0])?, norm(norms[1])?)),
            None => None,
        };
        Ok(Self { q: linear(names[0])?, k: linear(names[1])?, v: linear(names[2])?, norms })
    }

    fn forward(&self, x: Tensor, context: &Context<'_>) -> Result<[Tensor; 3]> {
        let (q, k) = (self.q.forward(&x, context)?, self.k.forward(&x, context)?);
        let v = self.v.forward(&x, context)?;
        drop(x);
        Ok(match &self.norms {
            Some((norm_q, norm_k)) => [norm_q.forward(&q)?, norm_k.forward(&k)?, v],
            None => [q, k, v],
        })
    }
}

const IMAGE: [&str; 3] = ["to_q", "to_k", "to_v"];
const TEXT: [&str; 3] = ["add_q_proj", "add_k_proj", "add_v_proj"];
const IMAGE_NORMS: [&str; 2] = ["norm_q", "norm_k"];
const TEXT_NORMS: [&str; 2] = ["norm_added_q", "norm_added_k"];

/// The image-only attention of SD3.5-medium's first blocks.
struct DualAttention {
    projections: Projections,
    to_out: Linear,
}

impl DualAttention {
    fn forward(&self, x: Tensor, heads: usize, context: &Context<'_>) -> Result<Tensor> {
        let [q, k, v] = self.projections.forward(x, context)?;
        let y = {
            let _span = tracing::trace_span!("attention").entered();
            ops::attention(&q, &k, &v, heads, None, false)?
        };
        Ok(self.to_out.forward(&y, context)?)
    }
}

/// The text stream of a block after attention; the last block has none.
struct TextOutput {
    to_add_out: Linear,
    ff_context: FeedForward,
}

struct JointBlock {
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
    fn new(config: &MmditConfig, index: usize, scope: &Scope<'_>) -> Result<Self> {
        let width = config.width();
        let (dual, last) = (config.dual(index), config.context_pre_only(index));
        let attn = scope.at("attn");
        let to_out = |scope: Scope<'_>| Linear::new(width, width, &scope.at("to_out.0"));
        let dual_attention = match dual {
            true => {
                let scope = scope.at("attn2");
                let projections = Projections::new(config, IMAGE, IMAGE_NORMS, &scope)?;
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
            image: Projections::new(config, IMAGE, IMAGE_NORMS, &attn)?,
            text: Projections::new(config, TEXT, TEXT_NORMS, &attn)?,
            to_out: to_out(attn.clone())?,
            dual: dual_attention,
            ff: FeedForward::new(width, Gate::GeluTanh, &scope.at("ff"))?,
            text_output,
            heads: config.num_attention_heads,
        })
    }

    /// One block over both streams; `time` is SiLU of the time and text embedding. The text stream of the last block
    /// comes back as it went in.
    fn forward(
        &self,
        x: Tensor,
        text: Tensor,
        time: &Tensor,
        multiplicity: Option<&Multiplicity>,
        context: &Context<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let text_context = Context { multiplicity: multiplicity.map(|m| &*m.of_text), ..*context };
        let image = Modulation::new(&self.norm1, time, context)?;
        let words = Modulation::new(&self.norm1_context, time, context)?;
        // AdaLayerNormZero orders its parts shift, scale, gate; AdaLayerNormContinuous scale, shift.
        let (scale, shift) = if self.text_output.is_some() { (1, 0) } else { (0, 1) };
        let norm_x = image.norm(&x, 0, 1, EPS)?;
        let norm_text = words.norm(&text, shift, scale, EPS)?;
        let (attention, text_attention) = self.attend(norm_x, norm_text, multiplicity, context)?;
        // The second attention reads the block's input, so it comes before the first is added.
        let dual = match &self.dual {
            Some(dual) => Some(dual.forward(image.norm(&x, 6, 7, EPS)?, self.heads, context)?),
            None => None,
        };
        let mut x = image.gated(x, 2, self.to_out.forward(&attention, context)?)?;
        drop(attention);
        if let Some(y) = dual {
            x = image.gated(x, 8, y)?;
        }
        let y = self.ff.forward(image.norm(&x, 3, 4, EPS)?, context)?;
        x = image.gated(x, 5, y)?;

        let Some(output) = &self.text_output else { return Ok((x, text)) };
        let text = words.gated(text, 2, output.to_add_out.forward(&text_attention, &text_context)?)?;
        drop(text_attention);
        let y = output.ff_context.forward(words.norm(&text, 3, 4, EPS)?, &text_context)?;
        Ok((x, words.gated(text, 5, y)?))
    }

    /// Joint attention of both streams, which are dropped as soon as they are projected.
    fn attend(
        &self,
        x: Tensor,
        text: Tensor,
        multiplicity: Option<&Multiplicity>,
        context: &Context<'_>,
    ) -> Result<(Tensor, Tensor)> {
        let text_context = Context { multiplicity: multiplicity.map(|m| &*m.of_text), ..*context };
        let [q, k, v] = self.image.forward(x, context)?;
        let [text_q, text_k, text_v] = self.text.forward(text, &text_context)?;
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

/// `SD3Transformer2DModel`.
pub struct Mmdit {
    config: MmditConfig,
    patches: PatchEmbed,
    pos_embed: Tensor,
    timestep_embedder: Embedder,
    text_embedder: Embedder,
    context_embedder: Linear,
    transformer_blocks: Vec<JointBlock>,
    norm_out: Linear,
    proj_out: Linear,
}

impl Mmdit {
    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &MmditConfig, scope: &Scope<'_>) -> Result<Self> {
        let (width, patch) = (config.width(), config.patch_size);
        let positions = config.pos_embed_max_size;
        let pos_embed = scope.at("pos_embed");
        let embedders = scope.at("time_text_embed");
        let block = |i| JointBlock::new(config, i, &scope.at(format!("transformer_blocks.{i}")));
        Ok(Self {
            patches: PatchEmbed::new((config.in_channels, width), patch, &pos_embed)?,
            pos_embed: pos_embed.constant("pos_embed", (1, positions * positions, width))?,
            timestep_embedder: Embedder::new(TIME.channels, width, &embedders.at("timestep_embedder"))?,
            text_embedder: Embedder::new(config.pooled_projection_dim, width, &embedders.at("text_embedder"))?,
            context_embedder: Linear::new(config.joint_attention_dim, width, &scope.at("context_embedder"))?,
            transformer_blocks: (0..config.num_layers).map(block).collect::<Result<_>>()?,
            norm_out: Linear::new(width, 2 * width, &scope.at("norm_out.linear"))?,
            proj_out: Linear::new(width, patch * patch * config.out_channels(), &scope.at("proj_out"))?,
            config: config.clone(),
        })
    }

    /// The middle `height` x `width` of the square table of positions: 1 x tokens x channels.
    fn positions(&self, (height, width): (usize, usize)) -> Result<Tensor> {
        let side = self.config.pos_embed_max_size;
        if height > side || width > side {
            let problem = format!("{height} x {width} tokens, and the model has positions for {side} x {side}");
            return Err(Error::Request(problem));
        }
        let channels = self.pos_embed.dim(2)?;
        let table = self.pos_embed.reshape((side, side, channels))?;
        let table = table.narrow(0, (side - height) / 2, height)?.narrow(1, (side - width) / 2, width)?;
        Ok(table.reshape((1, height * width, channels))?)
    }
}

impl Denoiser for Mmdit {
    fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f32],
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let (mut x, grid) = self.patches.forward(latents)?;
        x = x.broadcast_add(&self.positions(grid)?)?;
        let time = self.timestep_embedder.forward(&TIME.of(timesteps)?, context)?;
        let time = (time + self.text_embedder.forward(conditioning.pooled()?, context)?)?;
        let time = ops::activation(Activation::Silu, &time)?;
        let multiplicity = conditioning.multiplicity()?;
        let text_context = Context { multiplicity: multiplicity.as_ref().map(|m| &*m.of_text), ..*context };
        let mut text = self.context_embedder.forward(conditioning.text()?, &text_context)?;
        for block in &self.transformer_blocks {
            (x, text) = block.forward(x, text, &time, multiplicity.as_ref(), context)?;
        }
        let output = Modulation::new(&self.norm_out, &time, context)?;
        let x = self.proj_out.forward(&output.norm(&x, 1, 0, EPS)?, context)?;
        self.patches.unpatchify(&x, grid)
    }
}
