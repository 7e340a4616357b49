//! FluxTransformer2DModel: FLUX.1's transformer, whose image and text streams become one after the
//! first blocks.

use crate::conditioning::{Conditioning, Multiplicity};
use crate::error::{Error, Result};
use crate::families::denoiser::{Denoiser, DenoiserConfig};
use crate::families::joint::block::{
    EPS, IMAGE, IMAGE_NORMS, JointBlock, JointConfig, Projections,
};
use crate::files::{Options, check_heads};
use crate::layers::{
    Embedder, Heads, Modulation, Sinusoids, StreamLayers, embedder_layers, whole_grid,
};
use crate::structure::{Block, Geometry, Layer, NeuronGroup, Role, Slice, Structure};
use candle_core::{DType, Device, Tensor};
use secateur_nn::{Activation, Context, LayerName, Linear, Scope, ops};
use serde::Deserialize;
use std::sync::Arc;

/// How the timestep and the guidance scale are encoded.
const TIME: Sinusoids = Sinusoids { channels: 256, flip_sin_to_cos: true, freq_shift: 0.0 };
/// The guidance scale's unit, as the timestep's.
const GUIDANCE: f64 = 1000.0;
/// Height and width of the latents it was trained for.
const SIDE: usize = 128;
/// Side of a token, in latents.
const PATCH: usize = 2;
/// The longest wave of the rotary positions, over 2 pi.
const THETA: f64 = 10_000.0;

/// Configuration of a `FluxTransformer2DModel`.
#[derive(Clone, Debug, Deserialize)]
pub struct FluxConfig {
    #[serde(default = "one")]
    patch_size: usize,
    /// Numbers of an image token: 2 x 2 latents of a quarter as many channels.
    in_channels: usize,
    #[serde(default)]
    out_channels: Option<usize>,
    num_layers: usize,
    num_single_layers: usize,
    attention_head_dim: usize,
    num_attention_heads: usize,
    /// Width of the text states.
    joint_attention_dim: usize,
    /// Width of the pooled text.
    pooled_projection_dim: usize,
    #[serde(default)]
    guidance_embeds: bool,
    /// Shares of a head that tell the text's place, the row and the column.
    #[serde(default = "axes_dims_rope")]
    axes_dims_rope: [usize; 3],
}

fn one() -> usize {
    1
}
fn axes_dims_rope() -> [usize; 3] {
    [16, 56, 56]
}

impl FluxConfig {
    pub(crate) fn read(mut options: Options<'_>) -> Result<Self> {
        let config: Self = options.read()?;
        match config.problem() {
            Some(problem) => Err(options.invalid(problem)),
            None => options.finish(&[], &[]).map(|()| config),
        }
    }

    /// What is wrong with it, if anything.
    fn problem(&self) -> Option<String> {
        if self.patch_size != 1 {
            return Some(format!("patch_size {} is not supported; 1 is", self.patch_size));
        }
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels()),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
            ("num_layers + num_single_layers", self.num_layers + self.num_single_layers),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Some(format!("{name} must be positive"));
        }
        let heads = ("num_attention_heads", self.num_attention_heads);
        if let Err(problem) = check_heads(heads, ("attention_head_dim", self.attention_head_dim)) {
            return Some(problem);
        }
        if let Some((name, size)) = sizes[..2].iter().find(|(_, size)| size % (PATCH * PATCH) != 0)
        {
            return Some(format!(
                "{name} {size} is not a multiple of {PATCH} x {PATCH}, the latents of a token"
            ));
        }
        let (axes, head) = (self.axes_dims_rope, self.attention_head_dim);
        if axes.iter().any(|axis| axis % 2 != 0) || axes.iter().sum::<usize>() != head {
            return Some(format!(
                "axes_dims_rope {axes:?} must be even numbers that add up to attention_head_dim \
                 {head}"
            ));
        }
        None
    }

    fn out_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    fn joint(&self) -> JointConfig {
        JointConfig {
            heads: self.num_attention_heads,
            head_dim: self.attention_head_dim,
            qk_norm: true,
            rotary: true,
            dual: false,
            context_pre_only: false,
        }
    }

    /// The most numbers of one sample that are alive at once in a block of one stream of `tokens`:
    /// the stream, and attention's result and the hidden layer four times as wide, both as they are
    /// and joined.
    fn single_activations(&self, tokens: usize) -> usize {
        let modulations = 3;
        (11 * tokens + modulations) * self.joint().width()
    }

    fn describe_single(&self, index: usize, tokens: usize) -> Block {
        let prefix = format!("single_transformer_blocks.{index}");
        let width = self.joint().width();
        let name = |layer: &str| LayerName::from(format!("{prefix}.{layer}"));
        let (q, mlp, out) = (name("attn.to_q"), name("proj_mlp"), name("proj_out"));
        let modulation = Layer::linear(name("norm.linear"), 1, width, 3 * width);
        let mut block = Block::new(&prefix, &[]).with([modulation]);
        let stream = StreamLayers { tokens, projections: IMAGE, output: None };
        let heads = (self.num_attention_heads, self.attention_head_dim);
        block.joint_attention(&format!("{prefix}.attn"), &[stream], heads, self.joint().between());
        block = block.with([
            // It reads what the queries read: with them it needs no Hessian of its own.
            Layer::linear(mlp.clone(), tokens, width, 4 * width).prunable(Role::QueryKeyValue, &q),
            // Output projection of attention and down projection in one; four fifths of its columns
            // are the latter.
            Layer::linear(out.clone(), tokens, 5 * width, width)
                .prunable(Role::FeedForwardDown, &out),
        ]);
        block.heads.iter_mut().flat_map(|heads| &mut heads.streams).for_each(|stream| {
            stream.output = Some(Slice::whole(out.clone()));
        });
        block.neurons.push(NeuronGroup {
            name: mlp.clone(),
            count: 4 * width,
            up: vec![Slice::whole(mlp)],
            down: Slice { layer: out, start: width },
        });
        block
    }

    /// `FluxPosEmbed`: for each image token, at (0, row, column), and then each text token, at (0,
    /// 0, 0), the cosines and sines of a head's angles: tokens x head size.
    fn rotations(&self, rows: usize, columns: usize, text: usize) -> Result<Tensor> {
        let image = (0..rows).flat_map(|row| (0..columns).map(move |column| [0, row, column]));
        let places = image.chain(std::iter::repeat_n([0; 3], text));
        let mut table = Vec::with_capacity((rows * columns + text) * self.attention_head_dim);
        for place in places {
            for (position, width) in place.into_iter().zip(self.axes_dims_rope) {
                for pair in (0..width).step_by(2) {
                    let angle = position as f64 / THETA.powf(pair as f64 / width as f64);
                    table.extend([angle.cos() as f32, angle.sin() as f32]);
                }
            }
        }
        Ok(Tensor::from_vec(table, (rows * columns + text, self.attention_head_dim), &Device::Cpu)?)
    }
}

impl DenoiserConfig for FluxConfig {
    fn build(&self, scope: &Scope<'_>) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Flux::new(self, scope)?))
    }

    fn latent_shape(&self) -> [usize; 3] {
        [self.in_channels / (PATCH * PATCH), SIDE, SIDE]
    }

    fn text_width(&self) -> usize {
        self.joint_attention_dim
    }

    fn patch(&self) -> usize {
        PATCH
    }

    fn structure(&self, geometry: &Geometry) -> Structure {
        let width = self.joint().width();
        let (image, text) = (self.image_tokens(geometry.latent), geometry.text);
        let embedder = |name: &str, inputs| {
            embedder_layers(&format!("time_text_embed.{name}"), 1, inputs, width)
        };
        let mut embedders = Block::new("embedders", &[])
            .with([Layer::linear("x_embedder", image, self.in_channels, width)])
            .with(embedder("timestep_embedder", TIME.channels));
        if self.guidance_embeds {
            embedders = embedders.with(embedder("guidance_embedder", TIME.channels));
        }
        embedders = embedders
            .with(embedder("text_embedder", self.pooled_projection_dim))
            .with([Layer::linear("context_embedder", text, self.joint_attention_dim, width)]);
        let joint =
            |index| self.joint().describe(format!("transformer_blocks.{index}"), image, text);
        let single = |index| self.describe_single(index, image + text);
        let blocks = (0..self.num_layers)
            .map(joint)
            .chain((0..self.num_single_layers).map(single))
            .collect();
        let output = Block::new("output", &[]).with([
            Layer::linear("norm_out.linear", 1, width, 2 * width),
            Layer::linear("proj_out", image, width, self.out_channels()),
        ]);
        let joint = if self.num_layers > 0 { self.joint().activations(image, text) } else { 0 };
        let single =
            if self.num_single_layers > 0 { self.single_activations(image + text) } else { 0 };
        Structure::chain(embedders, blocks, output, joint.max(single))
    }
}

/// `FluxSingleTransformerBlock`: attention and feed-forward side by side, over image and text as
/// one stream.
struct SingleBlock {
    norm: Linear,
    projections: Projections,
    proj_mlp: Linear,
    proj_out: Linear,
    heads: Heads,
}

impl SingleBlock {
    fn new(config: JointConfig, scope: &Scope<'_>) -> Result<Self> {
        let width = config.width();
        let attn = scope.at("attn");
        let heads = config.heads_at(&attn);
        let proj_mlp = scope.at("proj_mlp");
        let hidden = proj_mlp.size(4 * width);
        Ok(Self {
            norm: Linear::new(width, 3 * width, &scope.at("norm.linear"))?,
            projections: Projections::new(config, IMAGE, IMAGE_NORMS, &attn)?,
            proj_mlp: Linear::new(width, hidden, &proj_mlp)?,
            proj_out: Linear::new(heads.value_width() + hidden, width, &scope.at("proj_out"))?,
            heads,
        })
    }

    /// `time` is SiLU of the embedding of its conditioning; `rotation` is that of all tokens.
    fn forward(
        &self,
        x: Tensor,
        time: &Tensor,
        rotation: &Tensor,
        multiplicity: Option<&Multiplicity>,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let modulation = Modulation::new(&self.norm, time, context)?;
        let context = &Context { multiplicity: multiplicity.map(|m| &*m.of_keys), ..*context };
        let normal = modulation.norm(&x, 0, 1, EPS)?;
        let attention = {
            let [q, k, v] = self.projections.forward(normal.clone(), Some(rotation), context)?;
            let _span = tracing::trace_span!("attention").entered();
            ops::attention(
                &q,
                &k,
                &v,
                self.heads.scaled(),
                multiplicity.map(|m| Arc::clone(&m.key_bias)),
                false,
            )?
        };
        let hidden = self.proj_mlp.forward_activated(&normal, Activation::GeluTanh, context)?;
        drop(normal);
        let joined = Tensor::cat(&[attention, hidden], 2)?;
        modulation.gated(x, 2, self.proj_out.forward(&joined, context)?)
    }
}

/// `FluxTransformer2DModel`.
pub struct Flux {
    config: FluxConfig,
    x_embedder: Linear,
    timestep_embedder: Embedder,
    guidance_embedder: Option<Embedder>,
    text_embedder: Embedder,
    context_embedder: Linear,
    transformer_blocks: Vec<JointBlock>,
    single_transformer_blocks: Vec<SingleBlock>,
    norm_out: Linear,
    proj_out: Linear,
}

impl Flux {
    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &FluxConfig, scope: &Scope<'_>) -> Result<Self> {
        let joint = config.joint();
        let width = joint.width();
        let embedder = |name: &str, inputs| {
            Embedder::new(inputs, width, &scope.at(format!("time_text_embed.{name}")))
        };
        let block =
            |index| JointBlock::new(joint, &scope.at(format!("transformer_blocks.{index}")));
        let single = |index| {
            SingleBlock::new(joint, &scope.at(format!("single_transformer_blocks.{index}")))
        };
        Ok(Self {
            x_embedder: Linear::new(config.in_channels, width, &scope.at("x_embedder"))?,
            timestep_embedder: embedder("timestep_embedder", TIME.channels)?,
            guidance_embedder: match config.guidance_embeds {
                true => Some(embedder("guidance_embedder", TIME.channels)?),
                false => None,
            },
            text_embedder: embedder("text_embedder", config.pooled_projection_dim)?,
            context_embedder: Linear::new(
                config.joint_attention_dim,
                width,
                &scope.at("context_embedder"),
            )?,
            transformer_blocks: (0..config.num_layers).map(block).collect::<Result<_>>()?,
            single_transformer_blocks: (0..config.num_single_layers)
                .map(single)
                .collect::<Result<_>>()?,
            norm_out: Linear::new(width, 2 * width, &scope.at("norm_out.linear"))?,
            proj_out: Linear::new(width, config.out_channels(), &scope.at("proj_out"))?,
            config: config.clone(),
        })
    }

    /// SiLU of the embedding of time, guidance and pooled text: samples x width.
    fn embedding(
        &self,
        timesteps: &[f32],
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let mut time = self.timestep_embedder.forward(&TIME.of(timesteps)?, context)?;
        if let Some(embedder) = &self.guidance_embedder {
            let scales =
                (conditioning.guidance()?.to_dtype(DType::F32)? * GUIDANCE)?.to_vec1::<f32>()?;
            time = (time + embedder.forward(&TIME.of(&scales)?, context)?)?;
        }
        time = (time + self.text_embedder.forward(conditioning.pooled()?, context)?)?;
        Ok(ops::activation(Activation::Silu, &time)?)
    }
}

impl Denoiser for Flux {
    fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f32],
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let (samples, channels, height, width) = latents.dims4()?;
        let (rows, columns) = whole_grid((height, width), PATCH)?;
        let image = rows * columns;
        let x = latents
            .reshape((samples, channels, rows, PATCH, columns, PATCH))?
            .permute((0, 2, 4, 1, 3, 5))?;
        let mut x = self
            .x_embedder
            .forward(&x.reshape((samples, image, channels * PATCH * PATCH))?, context)?;
        let time = self.embedding(timesteps, conditioning, context)?;
        let multiplicity = conditioning.multiplicity(image)?;
        let text_context =
            Context { multiplicity: multiplicity.as_ref().map(|m| &*m.of_text), ..*context };
        let mut text = self.context_embedder.forward(conditioning.text()?, &text_context)?;
        let rotations = self.config.rotations(rows, columns, text.dim(1)?)?;
        // The text is at 0 of all axes, where nothing turns.
        let image_rotations = rotations.narrow(0, 0, image)?;
        for (index, block) in self.transformer_blocks.iter().enumerate() {
            [x, text] = context.gated_array(
                format_args!("transformer_blocks.{index}"),
                [x, text],
                |[x, text]| {
                    block.forward(
                        x,
                        text,
                        &time,
                        Some(&image_rotations),
                        multiplicity.as_ref(),
                        context,
                    )
                },
            )?;
        }
        // The text comes last, as in key biases: attention does not mind the order.
        x = Tensor::cat(&[x, text], 1)?;
        for (index, block) in self.single_transformer_blocks.iter().enumerate() {
            [x] = context.gated_array(
                format_args!("single_transformer_blocks.{index}"),
                [x],
                |[x]| {
                    Ok::<_, Error>([block.forward(
                        x,
                        &time,
                        &rotations,
                        multiplicity.as_ref(),
                        context,
                    )?])
                },
            )?;
        }
        let output = Modulation::new(&self.norm_out, &time, context)?;
        let x = output.norm(&x.narrow(1, 0, image)?, 1, 0, EPS)?;
        let x = self.proj_out.forward(&x, context)?;
        let channels = self.config.out_channels() / (PATCH * PATCH);
        let x = x
            .reshape((samples, rows, columns, channels, PATCH, PATCH))?
            .permute((0, 3, 1, 4, 2, 5))?;
        Ok(x.reshape((samples, channels, height, width))?)
    }
}

#[cfg(test)]
mod tests {
    use super::FluxConfig;
    use crate::families::denoiser::DenoiserConfig;
    use crate::files::options::Options;
    use crate::structure::{Geometry, Operation};
    use serde_json::{Value, json};
    use std::path::Path;

    fn dev() -> Value {
        json!({
            "_class_name": "FluxTransformer2DModel",
            "attention_head_dim": 128,
            "guidance_embeds": true,
            "in_channels": 64,
            "joint_attention_dim": 4096,
            "num_attention_heads": 24,
            "num_layers": 19,
            "num_single_layers": 38,
            "patch_size": 1,
            "pooled_projection_dim": 768,
        })
    }

    #[test]
    fn flux_dev_has_as_many_parameters_as_it_should() {
        let config: FluxConfig = serde_json::from_value(dev()).unwrap();
        assert_eq!(config.problem(), None);
        assert_eq!(config.latent_shape(), [16, 128, 128]);
        assert_eq!(config.image_tokens((128, 96)), 64 * 48);
        let structure = config.structure(&Geometry { latent: (128, 128), text: 512 });
        let linear = |operation: Operation| match operation {
            Operation::Linear { inputs, outputs, .. } => (inputs + 1) * outputs,
            _ => 0,
        };
        let linears: usize = structure.layers().map(|layer| linear(layer.operation)).sum();
        let norms = 128 * (4 * 19 + 2 * 38);
        assert_eq!(linears + norms, 11_901_408_320);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        for (name, value) in [
            ("patch_size", json!(2)),
            ("in_channels", json!(0)),
            ("in_channels", json!(66)),
            ("out_channels", json!(6)),
            ("num_attention_heads", json!(0)),
            ("joint_attention_dim", json!(0)),
            ("axes_dims_rope", json!([16, 56, 54])),
            ("axes_dims_rope", json!([17, 55, 56])),
            ("qk_norm", json!("layer_norm")),
        ] {
            let mut config = dev();
            config[name] = value;
            let options = Options::new(Path::new("config.json"), config.as_object().unwrap());
            let problem = FluxConfig::read(options).unwrap_err().to_string();
            assert!(problem.contains(name), "{problem}");
        }
    }
}
