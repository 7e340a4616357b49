//! FluxTransformer2DModel: FLUX.1's transformer, whose image and text streams become one after the
//! first blocks.

use crate::conditioning::{Conditioning, Multiplicity};
use crate::error::Result;
use crate::families::denoiser::{Denoiser, DenoiserConfig};
use crate::families::joint::block::{
    EPS, IMAGE, IMAGE_NORMS, JointBlock, JointConfig, Projections,
};
use crate::files::{Options, check_heads, options};
use crate::layers::{BySize, Chain, Embedder, Heads, Modulation, Sinusoids, stream, whole_grid};
use crate::structure::{HeadStream, NeuronGroup, Role, Rows, Site, Slice};
use candle_core::Tensor;
use secateur_nn::{Activation, Context, Linear, Placement, ops};
use serde::Deserialize;

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
/// Hidden neurons of a feed-forward, per number of a token; no configuration says otherwise.
const MLP_RATIO: usize = 4;

/// Configuration of a `FluxTransformer2DModel`.
#[derive(Clone, Debug, Deserialize)]
pub struct FluxConfig {
    #[serde(default = "options::number::<1>")]
    patch_size: usize,
    /// Numbers of an image token: 2 x 2 latents of a quarter as many channels.
    in_channels: usize,
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
    /// Elements of a head that encode the text's place, the row and the column.
    #[serde(default = "axes_dims_rope")]
    axes_dims_rope: [usize; 3],
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

    /// Describes a problem of the configuration, if there is one.
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
            mlp_ratio: MLP_RATIO,
            qk_norm: true,
            rotary: true,
            dual: false,
            context_pre_only: false,
        }
    }

    /// `FluxPosEmbed`: for each image token, at (0, row, column), and then each text token, at (0,
    /// 0, 0), the cosines and sines of a head's angles: tokens x head size, in `f32`.
    fn rotations(
        &self,
        (rows, columns): (usize, usize),
        text: usize,
        placement: &Placement,
    ) -> Result<Tensor> {
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
        let shape = (rows * columns + text, self.attention_head_dim);
        Ok(placement.in_f32().tensor(table, shape)?)
    }
}

impl DenoiserConfig for FluxConfig {
    fn build(&self, site: &Site<'_>) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Flux::new(self, site)?))
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
    /// `site`: for all tokens.
    fn new(config: JointConfig, site: &Site<'_>) -> Result<Self> {
        let width = config.width();
        let attn = site.at("attn");
        let heads = config.heads_at(&attn);
        let norm = site.once().at("norm.linear").linear(width, 3 * width)?;
        let queries = site.prunable(Role::QueryKeyValue);
        let projections = Projections::new(config, IMAGE, IMAGE_NORMS, &queries.at("attn"))?;
        // It reads what the queries read: with them it needs no Hessian of its own.
        let mlp = queries.at("proj_mlp");
        // Output projection of attention and down projection in one: first the columns of the
        // former, then those of the latter.
        let out = site.prunable(Role::FeedForwardDown).at("proj_out");
        let output = Some(Slice::whole(out.layer_name()));
        let streams = vec![HeadStream { output, ..stream(&attn, IMAGE, None) }];
        heads.record(streams, attn.rows(), config.between(), &attn);
        let inner = config.ff_inner_dim();
        let count = mlp.size(inner);
        mlp.neurons(NeuronGroup {
            name: mlp.layer_name(),
            count,
            up: vec![Slice::whole(mlp.layer_name())],
            down: Slice { layer: out.layer_name(), start: heads.value_width() },
        });
        // The stream, and attention's result and the hidden layer, both as they are and joined; the
        // modulation.
        site.alive([(site.rows(), width + 2 * (width + inner)), (Rows::Fixed(1), 3 * width)]);
        Ok(Self {
            norm,
            projections,
            proj_mlp: mlp.linear(width, count)?,
            proj_out: out.linear(heads.value_width() + count, width)?,
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
        let context = &Context { multiplicity: multiplicity.map(|m| &m.of_keys), ..*context };
        let normal = modulation.norm(&x, 0, 1, EPS)?;
        let attention = {
            let [q, k, v] = self.projections.forward(normal.clone(), Some(rotation), context)?;
            let _span = tracing::trace_span!("attention").entered();
            ops::attention(
                &q,
                &k,
                &v,
                self.heads.scaled(),
                multiplicity.map(|m| &m.key_bias),
                false,
            )?
        };
        let hidden = self.proj_mlp.forward_activated(&normal, Activation::GeluTanh, context)?;
        drop(normal);
        let joined = ops::cat(&[&attention, &hidden], 2)?;
        drop((attention, hidden));
        modulation.gated(x, 2, self.proj_out.forward(&joined, context)?)
    }
}

/// `FluxTransformer2DModel`.
pub struct Flux {
    placement: Placement,
    config: FluxConfig,
    /// For each grid of the image, and number of text tokens.
    rotations: BySize<((usize, usize), usize)>,
    x_embedder: Linear,
    timestep_embedder: Embedder,
    guidance_embedder: Option<Embedder>,
    text_embedder: Embedder,
    context_embedder: Linear,
    transformer_blocks: Chain<JointBlock>,
    single_transformer_blocks: Chain<SingleBlock>,
    norm_out: Linear,
    proj_out: Linear,
}

impl Flux {
    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &FluxConfig, site: &Site<'_>) -> Result<Self> {
        let joint = config.joint();
        let width = joint.width();
        let embedder =
            |name, inputs| Embedder::new(inputs, width, &site.at("time_text_embed").at(name));
        let tokens = &site.over(site.smaller(PATCH, PATCH, 0));
        let x_embedder = tokens.at("x_embedder").linear(config.in_channels, width)?;
        let timestep_embedder = embedder("timestep_embedder", TIME.channels)?;
        let guidance = || embedder("guidance_embedder", TIME.channels);
        let guidance_embedder = config.guidance_embeds.then(guidance).transpose()?;
        let text_embedder = embedder("text_embedder", config.pooled_projection_dim)?;
        let text = site.over(Rows::Text).at("context_embedder");
        let context_embedder = text.linear(config.joint_attention_dim, width)?;
        let block = |_, site: &Site<'_>| JointBlock::new(joint, site);
        let blocks = tokens.at("transformer_blocks");
        let transformer_blocks = Chain::new(config.num_layers, &blocks, block)?;
        let single = |_, site: &Site<'_>| SingleBlock::new(joint, site);
        let blocks = tokens.with_text().at("single_transformer_blocks");
        let single_transformer_blocks = Chain::new(config.num_single_layers, &blocks, single)?;
        let output = tokens.output();
        Ok(Self {
            x_embedder,
            timestep_embedder,
            guidance_embedder,
            text_embedder,
            context_embedder,
            transformer_blocks,
            single_transformer_blocks,
            norm_out: output.once().at("norm_out.linear").linear(width, 2 * width)?,
            proj_out: output.at("proj_out").linear(width, config.out_channels())?,
            placement: site.placement().clone(),
            rotations: BySize::default(),
            config: config.clone(),
        })
    }

    /// SiLU of the embedding of time, guidance and pooled text: samples x width.
    fn embedding(
        &self,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let mut time =
            self.timestep_embedder.forward(&TIME.of(timesteps, &self.placement)?, context)?;
        if let Some(embedder) = &self.guidance_embedder {
            let scales = (conditioning.guidance()? * GUIDANCE)?;
            time = (time + embedder.forward(&TIME.of(&scales, &self.placement)?, context)?)?;
        }
        time = (time + self.text_embedder.forward(conditioning.pooled()?, context)?)?;
        Ok(ops::activation(Activation::Silu, &time)?)
    }
}

impl Denoiser for Flux {
    fn forward(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
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
            Context { multiplicity: multiplicity.as_ref().map(|m| &m.of_text), ..*context };
        let mut text = self.context_embedder.forward(conditioning.text()?, &text_context)?;
        let size @ (grid, words) = ((rows, columns), text.dim(1)?);
        let rotations =
            self.rotations.of(size, || self.config.rotations(grid, words, &self.placement))?;
        // The text is at 0 of all axes, where nothing turns.
        let image_rotations = rotations.narrow(0, 0, image)?;
        let multiplicity = multiplicity.as_ref();
        [x, text] =
            self.transformer_blocks.forward([x, text], context, |_, block, [x, text]| {
                block.forward(x, text, &time, Some(&image_rotations), multiplicity, context)
            })?;
        // The text comes last, as in key biases: attention does not mind the order.
        x = ops::cat(&[&x, &text], 1)?;
        drop(text);
        [x] = self.single_transformer_blocks.forward([x], context, |_, block, [x]| {
            Ok([block.forward(x, &time, &rotations, multiplicity, context)?])
        })?;
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
        let structure = config.structure(&Geometry { latent: (128, 128), text: 512 }).unwrap();
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
