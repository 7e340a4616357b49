//! DiTTransformer2DModel: the transformer of DiT, told a class.

use crate::conditioning::Conditioning;
use crate::error::{Error, Result};
use crate::families::denoiser::{Denoiser, DenoiserConfig};
use crate::files::{Options, options};
use crate::layers::{
    Attention, Embedder, FeedForward, Modulation, PatchEmbed, PatchTransformer, Positions,
    Sinusoids, embedder_layers,
};
use crate::structure::{Block, Geometry, Layer, Structure};
use candle_core::Tensor;
use secateur_nn::{Activation, Context, Embedding, Linear, Scope, ops};
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

    /// The layers of a block's own embedder of time.
    fn embedder(&self, index: usize) -> [Layer; 2] {
        let name = format!("transformer_blocks.{index}.norm1.emb.timestep_embedder");
        embedder_layers(&name, 1, TIME.channels, self.transformer.width())
    }

    fn describe(&self, index: usize, tokens: usize) -> Block {
        let width = self.transformer.width();
        let name = format!("transformer_blocks.{index}");
        let mut block = Block::new(&name, &[]);
        if index > 0 {
            block = block.with(self.embedder(index));
        }
        block = block.with([Layer::linear(format!("{name}.norm1.linear"), 1, width, 6 * width)]);
        let heads = self.transformer.num_attention_heads;
        block.attention(&format!("{name}.attn1"), tokens, (tokens, width), (heads, width), None);
        block.feed_forward(&format!("{name}.ff"), tokens, width, self.transformer.gate);
        block
    }
}

impl DenoiserConfig for DitConfig {
    fn build(&self, scope: &Scope<'_>) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Dit::new(self, scope)?))
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

    fn structure(&self, geometry: &Geometry) -> Structure {
        let width = self.transformer.width();
        let tokens = self.image_tokens(geometry.latent);
        // The output reads the first block's embedding too, so that must be there without the
        // block.
        let embedders = Block::new("embedders", &[])
            .with([self.transformer.pos_embed_layer(geometry.latent)])
            .with(self.embedder(0));
        let blocks =
            (0..self.transformer.num_layers).map(|index| self.describe(index, tokens)).collect();
        let output = Block::new("output", &[]).with([
            Layer::linear("proj_out_1", 1, width, 2 * width),
            Layer::linear("proj_out_2", tokens, width, self.transformer.outputs()),
        ]);
        // The embeddings of the first block and of one, and the modulation of one.
        let activations = self.transformer.activations(tokens) + (2 + 6) * width;
        Structure::chain(embedders, blocks, output, activations)
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
    fn new(config: &DitConfig, scope: &Scope<'_>) -> Result<Self> {
        let transformer = &config.transformer;
        let (width, heads, bias) =
            (transformer.width(), transformer.num_attention_heads, transformer.attention_bias);
        let norm1 = scope.at("norm1");
        let table = norm1.at("emb.class_embedder.embedding_table");
        Ok(Self {
            timestep_embedder: Embedder::new(
                TIME.channels,
                width,
                &norm1.at("emb.timestep_embedder"),
            )?,
            class_embedder: Embedding::new(config.num_embeds_ada_norm + 1, width, &table)?,
            norm1: Linear::new(width, 6 * width, &norm1.at("linear"))?,
            attn1: Attention::new(width, width, heads, bias, &scope.at("attn1"))?,
            ff: FeedForward::new(width, transformer.gate, &scope.at("ff"))?,
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
    transformer_blocks: Vec<DitBlock>,
    proj_out_1: Linear,
    proj_out_2: Linear,
}

impl Dit {
    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &DitConfig, scope: &Scope<'_>) -> Result<Self> {
        let transformer = &config.transformer;
        let width = transformer.width();
        let block = |i| DitBlock::new(config, &scope.at(format!("transformer_blocks.{i}")));
        Ok(Self {
            pos_embed: transformer.pos_embed(scope)?,
            positions: transformer.positions(1.0),
            transformer_blocks: (0..transformer.num_layers).map(block).collect::<Result<_>>()?,
            proj_out_1: Linear::new(width, 2 * width, &scope.at("proj_out_1"))?,
            proj_out_2: Linear::new(width, transformer.outputs(), &scope.at("proj_out_2"))?,
        })
    }
}

impl Denoiser for Dit {
    fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f32],
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let (mut x, grid) = self.pos_embed.forward(latents)?;
        x = x.broadcast_add(&self.positions.of(grid)?)?;
        let (time, labels) = (TIME.of(timesteps)?, conditioning.labels()?.unsqueeze(1)?);
        let embed = |block: &DitBlock| block.embed(&time, &labels, context);
        // The output has no embedder of its own.
        let first = embed(&self.transformer_blocks[0])?;
        for (index, block) in self.transformer_blocks.iter().enumerate() {
            [x] = context.gated_array(format_args!("transformer_blocks.{index}"), [x], |[x]| {
                let embedding = if index == 0 { first.clone() } else { embed(block)? };
                Ok::<_, Error>([block.forward(x, &embedding, context)?])
            })?;
        }
        let output = Modulation::new(&self.proj_out_1, &first, context)?;
        let x = self.proj_out_2.forward(&output.norm(&x, 0, 1, EPS)?, context)?;
        self.pos_embed.unpatchify(&x, grid)
    }
}
