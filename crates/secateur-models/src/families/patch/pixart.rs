//! PixArtTransformer2DModel: the transformer of PixArt-alpha and PixArt-sigma, conditioned on a
//! text.

use crate::conditioning::{Conditioning, Multiplicity};
use crate::error::Result;
use crate::families::denoiser::{Denoiser, DenoiserConfig};
use crate::files::{Options, options};
use crate::layers::{
    Attention, Chain, Embedder, FeedForward, Modulation, PatchEmbed, PatchTransformer, Positions,
    Sinusoids,
};
use crate::structure::{Rows, Site};
use candle_core::Tensor;
use secateur_nn::{Activation, Context, Linear, Placement, ops};
use serde::Deserialize;
use serde_json::{Value, json};

/// Of the last norm, whatever the configuration says.
const EPS: f32 = 1e-6;
/// How the timestep, the sides of the image and their ratio are encoded.
const TIME: Sinusoids = Sinusoids { channels: 256, flip_sin_to_cos: true, freq_shift: 0.0 };

/// Configuration of a `PixArtTransformer2DModel`.
#[derive(Clone, Debug, Deserialize)]
pub struct PixartConfig {
    #[serde(skip)]
    transformer: PatchTransformer,
    cross_attention_dim: Option<usize>,
    /// Width of the text states, if they are projected to the model's width first.
    caption_channels: Option<usize>,
    use_additional_conditions: Option<bool>,
    interpolation_scale: Option<f64>,
    #[serde(default = "norm_eps")]
    norm_eps: f32,
}

fn norm_eps() -> f32 {
    1e-6
}

/// Options with a single supported value, which is also their default.
fn supported() -> [(&'static str, Value); 6] {
    [
        ("attention_type", json!("default")),
        ("double_self_attention", json!(false)),
        ("norm_elementwise_affine", json!(false)),
        ("norm_type", json!("ada_norm_single")),
        ("num_vector_embeds", Value::Null),
        ("only_cross_attention", json!(false)),
    ]
}

/// Options that change nothing here: those of training, of other norms, and numbers are of f32
/// anyway.
const UNREAD: [&str; 4] = ["dropout", "norm_num_groups", "num_embeds_ada_norm", "upcast_attention"];

impl PixartConfig {
    pub(crate) fn read(mut options: Options<'_>) -> Result<Self> {
        let config = Self { transformer: options.read()?, ..options.read()? };
        config.check().map_err(|problem| options.invalid(problem))?;
        options.finish(&supported(), &UNREAD)?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.transformer.check()?;
        options::check_eps("norm_eps", self.norm_eps.into())?;
        let width = self.transformer.width();
        match (self.cross_attention_dim, self.caption_channels) {
            (None, _) => return Err("cross_attention_dim null is not supported".into()),
            (Some(0), _) | (_, Some(0)) => {
                return Err("cross_attention_dim and caption_channels must not be 0".into());
            }
            (Some(text), Some(_)) if text != width => {
                return Err(format!(
                    "cross_attention_dim {text} differs from heads x head size {width}"
                ));
            }
            _ => {}
        }
        if self.sized() && !width.is_multiple_of(3) {
            let needed = "a multiple of 3, which use_additional_conditions needs";
            return Err(format!("heads x head size {width} is not {needed}"));
        }
        let scale = self.interpolation_scale();
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(format!("interpolation_scale {scale} is not a positive number"));
        }
        Ok(())
    }

    /// Whether the model is conditioned on the size of the image.
    fn sized(&self) -> bool {
        self.use_additional_conditions.unwrap_or(self.transformer.sample_size == 128)
    }

    fn interpolation_scale(&self) -> f64 {
        self.interpolation_scale
            .unwrap_or_else(|| (self.transformer.sample_size / 64).max(1) as f64)
    }

    /// Width of the text that the blocks read.
    fn text(&self) -> usize {
        self.cross_attention_dim.unwrap_or_else(|| self.transformer.width())
    }
}

impl DenoiserConfig for PixartConfig {
    fn build(&self, site: &Site<'_>) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Pixart::new(self, site)?))
    }

    fn latent_shape(&self) -> [usize; 3] {
        self.transformer.latent_shape()
    }

    fn text_width(&self) -> usize {
        self.caption_channels.unwrap_or_else(|| self.text())
    }

    fn patch(&self) -> usize {
        self.transformer.patch_size
    }
}

/// `BasicTransformerBlock` with `ada_norm_single`.
struct PixartBlock {
    scale_shift_table: Tensor,
    attn1: Attention,
    attn2: Attention,
    ff: FeedForward,
    norm_eps: f32,
}

impl PixartBlock {
    fn new(config: &PixartConfig, site: &Site<'_>) -> Result<Self> {
        let transformer = &config.transformer;
        let (width, inner) = (transformer.width(), transformer.ff_inner_dim());
        let (heads, bias) = (transformer.num_attention_heads, transformer.attention_bias);
        Ok(Self {
            scale_shift_table: site.get("scale_shift_table", (6, width))?,
            attn1: Attention::new(width, None, heads, bias, &site.at("attn1"))?,
            attn2: Attention::new(width, Some(config.text()), heads, bias, &site.at("attn2"))?,
            ff: FeedForward::new(width, inner, transformer.gate, &site.at("ff"))?,
            norm_eps: config.norm_eps,
        })
    }

    /// `modulation`: of all blocks.
    fn forward(
        &self,
        mut x: Tensor,
        text: &Tensor,
        modulation: &Modulation,
        multiplicity: Option<&Multiplicity>,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let modulation = Modulation::of_table(&self.scale_shift_table, modulation)?;
        x = {
            let y = modulation.norm(&x, 0, 1, self.norm_eps)?;
            let y = self.attn1.forward(&y, &y, None, context)?;
            modulation.gated(x, 2, y)?
        };
        x = ops::add(&x, &self.attn2.forward(&x, text, multiplicity, context)?)?;
        let y = self.ff.forward(modulation.norm(&x, 3, 4, self.norm_eps)?, context)?;
        modulation.gated(x, 5, y)
    }
}

/// `AdaLayerNormSingle`: the time, and the size where it is given, for all blocks.
struct AdaLayerNormSingle {
    placement: Placement,
    timestep_embedder: Embedder,
    size: Option<SizeEmbedders>,
    linear: Linear,
}

/// Embedders of the size. Two thirds of the embedding's width encode the sides, one third their
/// ratio.
struct SizeEmbedders {
    placement: Placement,
    resolution_embedder: Embedder,
    aspect_ratio_embedder: Embedder,
}

impl AdaLayerNormSingle {
    fn new(config: &PixartConfig, site: &Site<'_>) -> Result<Self> {
        let width = config.transformer.width();
        let embedder = |name: &str, count, width| {
            Embedder::new(TIME.channels, width, &site.over(Rows::Fixed(count)).at("emb").at(name))
        };
        Ok(Self {
            placement: site.placement().clone(),
            timestep_embedder: embedder("timestep_embedder", 1, width)?,
            size: match config.sized() {
                true => Some(SizeEmbedders {
                    placement: site.placement().clone(),
                    resolution_embedder: embedder("resolution_embedder", 2, width / 3)?,
                    aspect_ratio_embedder: embedder("aspect_ratio_embedder", 1, width / 3)?,
                }),
                false => None,
            },
            linear: site.once().at("linear").linear(width, 6 * width)?,
        })
    }

    /// The embedding (samples x width) and the modulation that it gives.
    fn forward(
        &self,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<(Tensor, Modulation)> {
        let mut embedding =
            self.timestep_embedder.forward(&TIME.of(timesteps, &self.placement)?, context)?;
        if let Some(size) = &self.size {
            embedding = (embedding + size.forward(conditioning.resolution()?, context)?)?;
        }
        let activated = ops::activation(Activation::Silu, &embedding)?;
        let modulation = Modulation::new(&self.linear, &activated, context)?;
        Ok((embedding, modulation))
    }
}

impl SizeEmbedders {
    /// `resolution`: height and width, samples x 2.
    fn forward(&self, resolution: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let ratios = (resolution.narrow(1, 0, 1)? / resolution.narrow(1, 1, 1)?)?;
        let samples = resolution.dim(0)?;
        let resolution = self
            .resolution_embedder
            .forward(&TIME.of(resolution, &self.placement)?, context)?
            .reshape((samples, ()))?;
        let ratio =
            self.aspect_ratio_embedder.forward(&TIME.of(&ratios, &self.placement)?, context)?;
        Ok(Tensor::cat(&[resolution, ratio], 1)?)
    }
}

/// `PixArtTransformer2DModel`.
pub struct Pixart {
    pos_embed: PatchEmbed,
    positions: Positions,
    placement: Placement,
    adaln_single: AdaLayerNormSingle,
    caption_projection: Option<Embedder>,
    transformer_blocks: Chain<PixartBlock>,
    scale_shift_table: Tensor,
    proj_out: Linear,
}

impl Pixart {
    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &PixartConfig, site: &Site<'_>) -> Result<Self> {
        let transformer = &config.transformer;
        let width = transformer.width();
        let (pos_embed, tokens) = transformer.pos_embed(site)?;
        let adaln_single = AdaLayerNormSingle::new(config, &site.at("adaln_single"))?;
        let caption = site.over(Rows::Text).at("caption_projection");
        // A caption for none, which the original code trains with.
        caption.ignore("y_embedding");
        let caption = |channels| Embedder::of_text(channels, width, &caption);
        let caption_projection = config.caption_channels.map(caption).transpose()?;
        // The text, the embedding, the modulation that all blocks share and that of one.
        let beside = [(Rows::Text, config.text()), (Rows::Fixed(1), (1 + 6 + 6) * width)];
        let site = &site.over(tokens).beside(beside);
        let blocks = site.at("transformer_blocks");
        let block = |_, site: &Site<'_>| PixartBlock::new(config, site);
        Ok(Self {
            pos_embed,
            positions: transformer.positions(config.interpolation_scale()),
            placement: site.placement().clone(),
            adaln_single,
            caption_projection,
            transformer_blocks: Chain::new(transformer.num_layers, &blocks, block)?,
            scale_shift_table: site.get("scale_shift_table", (2, width))?,
            proj_out: site.output().at("proj_out").linear(width, transformer.outputs())?,
        })
    }
}

impl Denoiser for Pixart {
    fn forward(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let (mut x, grid) = self.pos_embed.forward(latents, context)?;
        x = x.broadcast_add(&self.positions.of(grid, &self.placement)?)?;
        let (embedding, modulation) =
            self.adaln_single.forward(timesteps, conditioning, context)?;
        let multiplicity = conditioning.multiplicity(0)?;
        let text = conditioning.text()?;
        let text = match &self.caption_projection {
            Some(projection) => {
                let of_text =
                    Context { multiplicity: multiplicity.as_ref().map(|m| &m.of_text), ..*context };
                projection.forward(text, &of_text)?
            }
            None => text.clone(),
        };
        [x] = self.transformer_blocks.forward([x], context, |_, block, [x]| {
            Ok([block.forward(x, &text, &modulation, multiplicity.as_ref(), context)?])
        })?;
        let output =
            Modulation::of_table(&self.scale_shift_table, &Modulation::of_part(&embedding)?)?;
        let x = self.proj_out.forward(&output.norm(&x, 0, 1, EPS)?, context)?;
        self.pos_embed.unpatchify(&x, grid)
    }
}
