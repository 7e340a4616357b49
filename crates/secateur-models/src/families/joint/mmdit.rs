//! SD3Transformer2DModel: the joint-attention transformer (MMDiT) of SD3 and SD3.5.

use crate::conditioning::Conditioning;
use crate::error::{Result, refuse};
use crate::families::denoiser::{Denoiser, DenoiserConfig};
use crate::families::joint::block::{EPS, JointBlock, JointConfig};
use crate::files::{Options, check_heads};
use crate::layers::{Chain, Embedder, Modulation, PatchEmbed, Sinusoids};
use crate::structure::{Rows, Site};
use candle_core::Tensor;
use secateur_nn::{Activation, Context, Linear, Placement, ops};
use serde::Deserialize;

/// How the timestep is encoded.
const TIME: Sinusoids = Sinusoids { channels: 256, flip_sin_to_cos: true, freq_shift: 0.0 };
/// Hidden neurons of a feed-forward, per number of a token; no configuration says otherwise.
const MLP_RATIO: usize = 4;

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
    out_channels: Option<usize>,
    pos_embed_max_size: usize,
    #[serde(default)]
    dual_attention_layers: Vec<usize>,
    qk_norm: Option<String>,
}

impl MmditConfig {
    pub(crate) fn read(mut options: Options<'_>) -> Result<Self> {
        let config: Self = options.read()?;
        let invalid = |problem: String| Err(options.invalid(problem));
        if let Some(norm) = config.qk_norm.as_deref().filter(|norm| *norm != "rms_norm") {
            return invalid(format!("qk_norm {norm:?} is not supported; \"rms_norm\" is, or null"));
        }
        let heads = ("num_attention_heads", config.num_attention_heads);
        if let Err(problem) = check_heads(heads, ("attention_head_dim", config.attention_head_dim))
        {
            return invalid(problem);
        }
        if config.caption_projection_dim != config.width() {
            let (caption, width) = (config.caption_projection_dim, config.width());
            return invalid(format!(
                "caption_projection_dim {caption} differs from heads x head size {width}"
            ));
        }
        let positive = [config.patch_size, config.in_channels, config.num_layers, config.width()];
        if positive.contains(&0) || config.sample_size < config.patch_size {
            return invalid(
                "sizes must be positive, and sample_size no less than patch_size".into(),
            );
        }
        options.finish(&[], &[])?;
        Ok(config)
    }

    fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    fn joint(&self, block: usize) -> JointConfig {
        JointConfig {
            heads: self.num_attention_heads,
            head_dim: self.attention_head_dim,
            mlp_ratio: MLP_RATIO,
            qk_norm: self.qk_norm.is_some(),
            rotary: false,
            dual: self.dual_attention_layers.contains(&block),
            // The last one's text is not read by anything.
            context_pre_only: block + 1 == self.num_layers,
        }
    }
}

impl DenoiserConfig for MmditConfig {
    fn build(&self, site: &Site<'_>) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Mmdit::new(self, site)?))
    }

    fn latent_shape(&self) -> [usize; 3] {
        [self.in_channels, self.sample_size, self.sample_size]
    }

    fn text_width(&self) -> usize {
        self.joint_attention_dim
    }

    fn patch(&self) -> usize {
        self.patch_size
    }

    fn largest_side(&self) -> usize {
        self.pos_embed_max_size * self.patch_size
    }
}

/// `SD3Transformer2DModel`.
pub struct Mmdit {
    placement: Placement,
    config: MmditConfig,
    patches: PatchEmbed,
    pos_embed: Tensor,
    timestep_embedder: Embedder,
    text_embedder: Embedder,
    context_embedder: Linear,
    transformer_blocks: Chain<JointBlock>,
    norm_out: Linear,
    proj_out: Linear,
}

impl Mmdit {
    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &MmditConfig, site: &Site<'_>) -> Result<Self> {
        let (width, patch) = (config.width(), config.patch_size);
        let positions = config.pos_embed_max_size;
        let pos_embed = site.at("pos_embed");
        let (patches, tokens) = PatchEmbed::new((config.in_channels, width), patch, &pos_embed)?;
        let embedder =
            |name, inputs| Embedder::new(inputs, width, &site.at("time_text_embed").at(name));
        let timestep_embedder = embedder("timestep_embedder", TIME.channels)?;
        let text_embedder = embedder("text_embedder", config.pooled_projection_dim)?;
        let text = site.over(Rows::Text).at("context_embedder");
        let context_embedder = text.linear(config.joint_attention_dim, width)?;
        let site = &site.over(tokens).beside([(Rows::Text, config.joint_attention_dim)]);
        let block = |index, site: &Site<'_>| JointBlock::new(config.joint(index), site);
        let blocks = site.at("transformer_blocks");
        let transformer_blocks = Chain::new(config.num_layers, &blocks, block)?;
        let output = site.output();
        Ok(Self {
            patches,
            pos_embed: pos_embed.constant("pos_embed", (1, positions * positions, width))?,
            timestep_embedder,
            text_embedder,
            context_embedder,
            transformer_blocks,
            norm_out: output.once().at("norm_out.linear").linear(width, 2 * width)?,
            proj_out: output.at("proj_out").linear(width, patch * patch * config.out_channels())?,
            placement: site.placement().clone(),
            config: config.clone(),
        })
    }

    /// The middle `height` x `width` of the square table of positions: 1 x tokens x channels.
    fn positions(&self, (height, width): (usize, usize)) -> Result<Tensor> {
        let side = self.config.pos_embed_max_size;
        if height > side || width > side {
            refuse!("{height} x {width} tokens, and the model has positions for {side} x {side}");
        }
        let channels = self.pos_embed.dim(2)?;
        let table = self.pos_embed.reshape((side, side, channels))?;
        let table =
            table.narrow(0, (side - height) / 2, height)?.narrow(1, (side - width) / 2, width)?;
        Ok(table.reshape((1, height * width, channels))?)
    }
}

impl Denoiser for Mmdit {
    fn forward(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let (mut x, grid) = self.patches.forward(latents, context)?;
        x = x.broadcast_add(&self.positions(grid)?)?;
        let time =
            self.timestep_embedder.forward(&TIME.of(timesteps, &self.placement)?, context)?;
        let time = (time + self.text_embedder.forward(conditioning.pooled()?, context)?)?;
        let time = ops::activation(Activation::Silu, &time)?;
        let multiplicity = conditioning.multiplicity(x.dim(1)?)?;
        let text_context =
            Context { multiplicity: multiplicity.as_ref().map(|m| &m.of_text), ..*context };
        let text = self.context_embedder.forward(conditioning.text()?, &text_context)?;
        [x, _] = self.transformer_blocks.forward([x, text], context, |_, block, [x, text]| {
            block.forward(x, text, &time, None, multiplicity.as_ref(), context)
        })?;
        let output = Modulation::new(&self.norm_out, &time, context)?;
        let x = self.proj_out.forward(&output.norm(&x, 1, 0, EPS)?, context)?;
        self.patches.unpatchify(&x, grid)
    }
}
