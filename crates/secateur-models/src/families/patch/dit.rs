//! DiTTransformer2DModel: the transformer of DiT, conditioned on a class.

use crate::conditioning::Conditioning;
use crate::error::Result;
use crate::families::denoiser::{Denoiser, DenoiserConfig};
use crate::files::{Options, options};
use crate::layers::{
    Attention, Chain, Embedder, FeedForward, Modulation, PatchEmbed, PatchTransformer, Positions,
    Sinusoids,
};
use crate::structure::{Rows, Site};
use candle_core::Tensor;
use secateur_nn::{Activation, Context, Embedding, Linear, Placement, ops};
use serde::Deserialize;
use serde_json::{Value, json};

/// Of the first norm of a block and of the last one, whatever the configuration says.
const EPS: f32 = 1e-6;
/// How the timestep is encoded.
const TIME: Sinusoids = Sinusoids { channels: 256, flip_sin_to_cos: true, freq_shift: 1.0 };

/// Configuration of a `DiTTransformer2DModel`.
#[derive(Clone, Debug, Deserialize)]
pub struct DitConfig {
    #[serde(skip)]
    transformer: PatchTransformer,
    /// Classes; one more label stands for none of them.
    num_embeds_ada_norm: usize,
    #[serde(default = "norm_eps")]
    norm_eps: f32,
}

fn norm_eps() -> f32 {
    1e-5
}

/// Options with a single supported value, which is also their default.
fn supported() -> [(&'static str, Value); 7] {
    [
        ("attention_type", json!("default")),
        ("cross_attention_dim", Value::Null),
        ("double_self_attention", json!(false)),
        ("norm_elementwise_affine", json!(false)),
        ("norm_type", json!("ada_norm_zero")),
        ("num_vector_embeds", Value::Null),
        ("only_cross_attention", json!(false)),
    ]
}

/// Options that change nothing here: those of training, of other norms, and numbers are of f32
/// anyway.
const UNREAD: [&str; 4] =
    ["dropout", "norm_num_groups", "upcast_attention", "use_additional_conditions"];

impl DitConfig {
    pub(crate) fn read(mut options: Options<'_>) -> Result<Self> {
        let config = Self { transformer: options.read()?, ..options.read()? };
        let checked = config
            .transformer
            .check()
            .and_then(|()| options::check_eps("norm_eps", config.norm_eps.into()));
        checked.map_err(|problem| options.invalid(problem))?;
        options.finish(&supported(), &UNREAD)?;
        Ok(config)
    }
}

impl DenoiserConfig for DitConfig {
    fn build(&self, site: &Site<'_>) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Dit::new(self, site)?))
    }

    fn latent_shape(&self) -> [usize; 3] {
        self.transformer.latent_shape()
    }

    fn classes(&self) -> usize {
        self.num_embeds_ada_norm
    }

    fn patch(&self) -> usize {
        self.transformer.patch_size
    }
}

/// `BasicTransformerBlock` with `ada_norm_zero`. It has an embedder of time and class for itself.
struct DitBlock {
    timestep_embedder: Embedder,
    class_embedder: Embedding,
    norm1: Linear,
    attn1: Attention,
    ff: FeedForward,
    norm_eps: f32,
}

impl DitBlock {
    /// `embedder`: the same place as a part of the block that its embedder of time belongs to.
    fn new(config: &DitConfig, embedder: &Site<'_>, site: &Site<'_>) -> Result<Self> {
        let transformer = &config.transformer;
        let (width, inner) = (transformer.width(), transformer.ff_inner_dim());
        let (heads, bias) = (transformer.num_attention_heads, transformer.attention_bias);
        let embedder = embedder.once().at("norm1.emb");
        let table = embedder.at("class_embedder.embedding_table");
        Ok(Self {
            timestep_embedder: Embedder::new(
                TIME.channels,
                width,
                &embedder.at("timestep_embedder"),
            )?,
            class_embedder: Embedding::new(config.num_embeds_ada_norm + 1, width, &table)?,
            norm1: site.once().at("norm1.linear").linear(width, 6 * width)?,
            attn1: Attention::new(width, None, heads, bias, &site.at("attn1"))?,
            ff: FeedForward::new(width, inner, transformer.gate, &site.at("ff"))?,
            norm_eps: config.norm_eps,
        })
    }

    /// SiLU of the embedding of time (samples x channels) and labels (samples x 1).
    fn embed(&self, time: &Tensor, labels: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let time = self.timestep_embedder.forward(time, context)?;
        let class = self.class_embedder.forward(labels)?.squeeze(1)?;
        Ok(ops::activation(Activation::Silu, &(time + class)?)?)
    }

    fn forward(&self, mut x: Tensor, embedding: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let modulation = Modulation::new(&self.norm1, embedding, context)?;
        x = {
            let y = modulation.norm(&x, 0, 1, EPS)?;
            let y = self.attn1.forward(&y, &y, None, context)?;
            modulation.gated(x, 2, y)?
        };
        let y = self.ff.forward(modulation.norm(&x, 3, 4, self.norm_eps)?, context)?;
        modulation.gated(x, 5, y)
    }
}

/// `DiTTransformer2DModel`.
pub struct Dit {
    pos_embed: PatchEmbed,
    positions: Positions,
    placement: Placement,
    transformer_blocks: Chain<DitBlock>,
    proj_out_1: Linear,
    proj_out_2: Linear,
}

impl Dit {
    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &DitConfig, site: &Site<'_>) -> Result<Self> {
        let transformer = &config.transformer;
        let width = transformer.width();
        let (pos_embed, tokens) = transformer.pos_embed(site)?;
        // The embeddings of the first block and of one, and the modulation of one.
        let site = &site.over(tokens).beside([(Rows::Fixed(1), (2 + 6) * width)]);
        // The output reads the first block's embedding too, so that must be there without the
        // block.
        let blocks = site.at("transformer_blocks");
        let first = blocks.at(0);
        let block = |index, site: &Site<'_>| {
            DitBlock::new(config, if index == 0 { &first } else { site }, site)
        };
        let transformer_blocks = Chain::new(transformer.num_layers, &blocks, block)?;
        let output = site.output();
        Ok(Self {
            pos_embed,
            positions: transformer.positions(1.0),
            placement: site.placement().clone(),
            transformer_blocks,
            proj_out_1: output.once().at("proj_out_1").linear(width, 2 * width)?,
            proj_out_2: output.at("proj_out_2").linear(width, transformer.outputs())?,
        })
    }
}

impl Denoiser for Dit {
    fn forward(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let (mut x, grid) = self.pos_embed.forward(latents, context)?;
        x = x.broadcast_add(&self.positions.of(grid, &self.placement)?)?;
        let (time, labels) =
            (TIME.of(timesteps, &self.placement)?, conditioning.labels()?.unsqueeze(1)?);
        let embed = |block: &DitBlock| block.embed(&time, &labels, context);
        // The output has no embedder of its own.
        let first = embed(&self.transformer_blocks.blocks[0])?;
        [x] = self.transformer_blocks.forward([x], context, |index, block, [x]| {
            let embedding = if index == 0 { first.clone() } else { embed(block)? };
            Ok([block.forward(x, &embedding, context)?])
        })?;
        let output = Modulation::new(&self.proj_out_1, &first, context)?;
        let x = self.proj_out_2.forward(&output.norm(&x, 0, 1, EPS)?, context)?;
        self.pos_embed.unpatchify(&x, grid)
    }
}
