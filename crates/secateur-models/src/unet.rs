//! UNet2DConditionModel (SD1.x, SD2.x, SDXL) and UNet2DModel (DDPM).

use crate::blocks::{
    Embedder, Gate, Norm, PixelAttention, ResnetBlock, Sinusoids, TransformerBlock, embedder_layers, pixels_of,
    tokens_of,
};
use crate::conditioning::Conditioning;
use crate::error::{Error, Result, read_json};
use crate::family::{Denoiser, DenoiserConfig};
use crate::options;
use crate::structure::{Block, Geometry, Layer, Structure, Unit};
use candle_core::{DType, Tensor};
use secateur_nn::{Activation, Context, Conv2d, GroupNorm, LayerName, Linear, Scope, ops};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// Configuration of a `UNet2DConditionModel` or a `UNet2DModel`.
#[derive(Clone, Debug)]
pub struct UnetConfig {
    sample_size: (usize, usize),
    in_channels: usize,
    out_channels: usize,
    /// Width of the time embedding.
    time: usize,
    time_proj: Sinusoids,
    /// What SDXL is told beside the text.
    addition: Option<Addition>,
    norm: Norm,
    /// Zeros around what is halved.
    downsample_padding: (usize, usize),
    down: Vec<Level>,
    middle: Level,
    /// From the lowest resolution on.
    up: Vec<Level>,
    /// Width of the text states; 0 where there is no text.
    text: usize,
    use_linear_projection: bool,
}

/// Residual blocks of one resolution on one side.
#[derive(Clone, Copy, Debug)]
struct Level {
    channels: usize,
    /// Residual blocks.
    layers: usize,
    attention: LevelAttention,
}

/// What follows each residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LevelAttention {
    None,
    /// Attention over the pixels.
    Pixels {
        heads: usize,
    },
    /// `Transformer2DModel`: transformer blocks that see the text.
    Text {
        heads: usize,
        depth: usize,
    },
}

/// The `text_time` embedding of SDXL: pooled text and sizes.
#[derive(Clone, Copy, Debug)]
struct Addition {
    time_proj: Sinusoids,
    /// Pooled text and all sizes as sinusoids.
    inputs: usize,
}

/// A number for all levels, or one for each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PerLevel {
    All(usize),
    Each(Vec<usize>),
}

impl PerLevel {
    fn at(&self, level: usize) -> Option<usize> {
        match self {
            Self::All(value) => Some(*value),
            Self::Each(values) => values.get(level).copied(),
        }
    }

    fn fits(&self, levels: usize) -> bool {
        !matches!(self, Self::Each(values) if values.len() != levels)
    }
}

/// What both classes have in common, as the file has it.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "_class_name")]
    class: String,
    sample_size: Side,
    in_channels: usize,
    out_channels: usize,
    block_out_channels: Vec<usize>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    #[serde(default = "two")]
    layers_per_block: PerLevel,
    #[serde(default = "eight")]
    attention_head_dim: Option<PerLevel>,
    #[serde(default)]
    num_attention_heads: Option<PerLevel>,
    #[serde(default = "one")]
    transformer_layers_per_block: PerLevel,
    #[serde(default)]
    cross_attention_dim: Option<PerLevel>,
    #[serde(default)]
    use_linear_projection: bool,
    norm_num_groups: usize,
    #[serde(default = "norm_eps")]
    norm_eps: f32,
    #[serde(default = "usize_one")]
    downsample_padding: usize,
    #[serde(default = "yes")]
    flip_sin_to_cos: bool,
    #[serde(default)]
    freq_shift: f64,
    #[serde(default)]
    time_embedding_dim: Option<usize>,
    #[serde(default)]
    addition_embed_type: Option<String>,
    #[serde(default)]
    addition_time_embed_dim: Option<usize>,
    #[serde(default)]
    projection_class_embeddings_input_dim: Option<usize>,
    #[serde(default = "yes")]
    add_attention: bool,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// A side of a square, or height and width.
#[derive(Deserialize)]
#[serde(untagged)]
enum Side {
    Square(usize),
    Both([usize; 2]),
}

fn yes() -> bool {
    true
}
fn usize_one() -> usize {
    1
}
fn one() -> PerLevel {
    PerLevel::All(1)
}
fn two() -> PerLevel {
    PerLevel::All(2)
}
fn eight() -> Option<PerLevel> {
    Some(PerLevel::All(8))
}
fn norm_eps() -> f32 {
    1e-5
}

/// Options of which only this value is supported; it is also what they are where they are absent.
fn only_supported() -> [(&'static str, Value); 27] {
    use serde_json::json;
    [
        ("act_fn", json!("silu")),
        ("addition_embed_type_num_heads", json!(64)),
        ("attention_type", json!("default")),
        ("attn_norm_num_groups", Value::Null),
        ("center_input_sample", json!(false)),
        ("class_embed_type", Value::Null),
        ("class_embeddings_concat", json!(false)),
        ("conv_in_kernel", json!(3)),
        ("conv_out_kernel", json!(3)),
        ("cross_attention_norm", Value::Null),
        ("downsample_type", json!("conv")),
        ("dual_cross_attention", json!(false)),
        ("encoder_hid_dim", Value::Null),
        ("encoder_hid_dim_type", Value::Null),
        ("mid_block_only_cross_attention", Value::Null),
        ("mid_block_scale_factor", json!(1)),
        ("num_class_embeds", Value::Null),
        ("only_cross_attention", json!(false)),
        ("resnet_out_scale_factor", json!(1)),
        ("resnet_skip_time_act", json!(false)),
        ("resnet_time_scale_shift", json!("default")),
        ("reverse_transformer_layers_per_block", Value::Null),
        ("time_cond_proj_dim", Value::Null),
        ("time_embedding_act_fn", Value::Null),
        ("time_embedding_type", json!("positional")),
        ("timestep_post_act", Value::Null),
        ("upsample_type", json!("conv")),
    ]
}

impl UnetConfig {
    /// Reads a component's `config.json`.
    ///
    /// # Errors
    /// If it cannot be read, contradicts itself, or asks for something that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_file(&read_json(path)?).map_err(|problem| Error::invalid(path, problem))
    }

    fn from_file(file: &File) -> std::result::Result<Self, String> {
        let conditional = match file.class.as_str() {
            "UNet2DConditionModel" => true,
            "UNet2DModel" => false,
            class => return Err(format!("_class_name {class:?} is not a UNet that is supported")),
        };
        options::only(&file.others, &only_supported())?;
        let (down, middle, up) = file.levels(conditional)?;
        let channels = &file.block_out_channels;
        let groups = file.norm_num_groups;
        if groups == 0 || channels.iter().any(|c| *c == 0 || c % groups != 0) {
            return Err(format!("block_out_channels {channels:?} do not divide into {groups} groups"));
        }
        let sinusoids =
            |channels| Sinusoids { channels, flip_sin_to_cos: file.flip_sin_to_cos, freq_shift: file.freq_shift };
        let addition = match file.addition_embed_type.as_deref() {
            None => None,
            Some("text_time") => match (file.addition_time_embed_dim, file.projection_class_embeddings_input_dim) {
                (Some(channels), Some(inputs)) => Some(Addition { time_proj: sinusoids(channels), inputs }),
                _ => {
                    let needed = "addition_time_embed_dim and projection_class_embeddings_input_dim";
                    return Err(format!("addition_embed_type text_time needs {needed}"));
                }
            },
            Some(other) => return Err(format!("addition_embed_type {other:?} is not supported")),
        };
        let text = match (&file.cross_attention_dim, conditional) {
            (_, false) => 0,
            (Some(PerLevel::All(width)), true) => *width,
            (Some(PerLevel::Each(widths)), true) if widths.windows(2).all(|w| w[0] == w[1]) && !widths.is_empty() => {
                widths[0]
            }
            (Some(PerLevel::Each(_)), true) => return Err("a cross_attention_dim a level is not supported".into()),
            (None, true) => return Err("cross_attention_dim is missing".into()),
        };
        Ok(Self {
            sample_size: match file.sample_size {
                Side::Square(side) => (side, side),
                Side::Both([height, width]) => (height, width),
            },
            in_channels: file.in_channels,
            out_channels: file.out_channels,
            time: file.time_embedding_dim.unwrap_or(4 * channels[0]),
            time_proj: sinusoids(channels[0]),
            addition,
            norm: Norm { groups, eps: file.norm_eps },
            // diffusers pads right and below only where it is told not to pad.
            downsample_padding: match file.downsample_padding {
                0 => (0, 1),
                around => (around, around),
            },
            down,
            middle,
            up,
            text,
            use_linear_projection: file.use_linear_projection,
        })
    }
}

impl File {
    /// The levels down, the middle, and up.
    fn levels(&self, conditional: bool) -> std::result::Result<(Vec<Level>, Level, Vec<Level>), String> {
        let channels = &self.block_out_channels;
        let count = channels.len();
        if count == 0 || self.down_block_types.len() != count || self.up_block_types.len() != count {
            return Err("block_out_channels, down_block_types and up_block_types differ in length".into());
        }
        // diffusers calls the number of heads attention_head_dim, unless both are there.
        let heads = match (conditional, &self.num_attention_heads) {
            (true, Some(heads)) => Some(heads),
            _ => self.attention_head_dim.as_ref(),
        };
        let per_level = [Some(&self.layers_per_block), heads, Some(&self.transformer_layers_per_block)];
        if per_level.into_iter().flatten().any(|values| !values.fits(count)) {
            return Err(format!(
                "layers_per_block, attention_head_dim, num_attention_heads and transformer_layers_per_block must be \
                 single numbers or {count} each, as block_out_channels"
            ));
        }
        let level = |index: usize, kind: &str, more: usize| {
            let channels = channels[index];
            let number = heads.and_then(|heads| heads.at(index));
            let attention = match kind {
                "DownBlock2D" | "UpBlock2D" => LevelAttention::None,
                "AttnDownBlock2D" | "AttnUpBlock2D" if !conditional => LevelAttention::Pixels {
                    // Here it is what it is called.
                    heads: channels.checked_div(number.unwrap_or(channels)).unwrap_or(0),
                },
                "CrossAttnDownBlock2D" | "CrossAttnUpBlock2D" if conditional => LevelAttention::Text {
                    heads: number.unwrap_or(8),
                    depth: self.transformer_layers_per_block.at(index).unwrap_or(1),
                },
                other => return Err(format!("block {other:?} is not supported in a {}", self.class)),
            };
            if let LevelAttention::Pixels { heads } | LevelAttention::Text { heads, .. } = attention
                && !channels.is_multiple_of(heads)
            {
                return Err(format!("{channels} channels do not divide into {heads} heads"));
            }
            Ok(Level { channels, layers: self.layers_per_block.at(index).unwrap_or(2) + more, attention })
        };
        let down = (0..count).map(|index| level(index, &self.down_block_types[index], 0));
        let up = (0..count).map(|index| level(count - 1 - index, &self.up_block_types[index], 1));
        let kind = match (conditional, self.add_attention) {
            (true, _) => "CrossAttnDownBlock2D",
            (false, true) => "AttnDownBlock2D",
            (false, false) => "DownBlock2D",
        };
        let wanted = if conditional { "UNetMidBlock2DCrossAttn" } else { "UNetMidBlock2D" };
        if let Some(found) = self.others.get("mid_block_type").filter(|found| found.as_str() != Some(wanted)) {
            return Err(format!("mid_block_type {found} is not supported; {wanted} is"));
        }
        let middle = Level { layers: 1, ..level(count - 1, kind, 0)? };
        Ok((down.collect::<std::result::Result<_, String>>()?, middle, up.collect::<std::result::Result<_, String>>()?))
    }
}

impl DenoiserConfig for UnetConfig {
    fn build(&self, scope: &Scope<'_>) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Unet::new(self, scope)?))
    }

    fn latent_shape(&self) -> [usize; 3] {
        [self.in_channels, self.sample_size.0, self.sample_size.1]
    }

    fn text_width(&self) -> usize {
        self.text
    }

    fn structure(&self, geometry: &Geometry) -> Structure {
        Description::new(self, geometry.text).describe(geometry.latent)
    }
}

/// Gathers the blocks of a [`Structure`].
struct Description<'a> {
    config: &'a UnetConfig,
    /// Text tokens.
    text: usize,
    structure: Structure,
    /// Where the features come from that the next block reads.
    last: usize,
    /// The first layer that reads the text, which all others share with it.
    first_of_text: Option<LayerName>,
    /// Numbers that are kept for the way up.
    kept: usize,
}

/// What is kept for the way up.
#[derive(Clone, Copy)]
struct Skip {
    /// The block that it comes from.
    block: usize,
    channels: usize,
    size: (usize, usize),
}

impl<'a> Description<'a> {
    fn new(config: &'a UnetConfig, text: usize) -> Self {
        Self { config, text, structure: Structure::default(), last: 0, first_of_text: None, kept: 0 }
    }

    /// So many numbers are alive beside those kept.
    fn reach(&mut self, numbers: usize) {
        self.structure.activations = self.structure.activations.max(self.kept + numbers);
    }

    /// Puts a block behind those there are.
    fn push(&mut self, block: Block) {
        self.structure.blocks.push(block);
        self.last = self.structure.blocks.len() - 1;
    }

    /// A branch of all blocks since there were `start`.
    fn branch(&mut self, name: impl Into<String>, start: usize) {
        let blocks = start..self.structure.blocks.len();
        self.structure.branches.push(Unit { name: name.into(), blocks });
    }

    /// A unit of all blocks since there were `start`.
    fn unit(&mut self, name: impl Into<String>, start: usize) {
        let blocks = start..self.structure.blocks.len();
        self.structure.units.push(Unit { name: name.into(), blocks });
    }

    fn keep(&mut self, channels: usize, size: (usize, usize), skips: &mut Vec<Skip>) {
        skips.push(Skip { block: self.last, channels, size });
        self.kept += channels * size.0 * size.1;
    }

    fn describe(mut self, latent: (usize, usize)) -> Structure {
        let config = self.config;
        let first = config.down[0].channels;
        let (mut size, mut width) = (latent, first);
        let mut embedders = Block::new("embedders", &[]).with(embedder_layers(
            "time_embedding",
            1,
            config.time_proj.channels,
            config.time,
        ));
        if let Some(addition) = config.addition {
            embedders = embedders.with(embedder_layers("add_embedding", 1, addition.inputs, config.time));
        }
        self.push(embedders.with([Layer::convolution("conv_in", size, (config.in_channels, first), 3)]));
        let mut skips = Vec::new();
        self.keep(first, size, &mut skips);
        for (index, level) in config.down.iter().enumerate() {
            let prefix = format!("down_blocks.{index}");
            let start = self.structure.blocks.len();
            for layer in 0..level.layers {
                let start = self.structure.blocks.len();
                self.resnet(&format!("{prefix}.resnets.{layer}"), size, width, level.channels, None);
                self.attention(&format!("{prefix}.attentions.{layer}"), size, *level);
                width = level.channels;
                self.keep(width, size, &mut skips);
                self.branch(format!("{prefix}.resnets.{layer}"), start);
            }
            if index + 1 < config.down.len() {
                let padding = config.downsample_padding.0 + config.downsample_padding.1;
                let half = |side: usize| (side + padding).saturating_sub(3) / 2 + 1;
                size = (half(size.0), half(size.1));
                let name = format!("{prefix}.downsamplers.0");
                let start = self.structure.blocks.len();
                let convolution = Layer::convolution(&format!("{name}.conv"), size, (width, width), 3);
                self.push(Block::new(&name, &[self.last]).with([convolution]));
                self.keep(width, size, &mut skips);
                self.branch(name, start);
            }
            self.unit(prefix, start);
        }
        let start = self.structure.blocks.len();
        self.resnet("mid_block.resnets.0", size, width, width, None);
        self.attention("mid_block.attentions.0", size, config.middle);
        self.resnet("mid_block.resnets.1", size, width, width, None);
        self.branch("mid_block", start);
        self.unit("mid_block", start);
        for (index, level) in config.up.iter().enumerate() {
            let prefix = format!("up_blocks.{index}");
            let start = self.structure.blocks.len();
            for layer in 0..level.layers {
                let branch = self.structure.blocks.len();
                let skip = skips.pop();
                let more = skip.map_or(0, |skip| skip.channels);
                self.kept -= more * size.0 * size.1;
                self.resnet(&format!("{prefix}.resnets.{layer}"), size, width + more, level.channels, skip);
                self.attention(&format!("{prefix}.attentions.{layer}"), size, *level);
                width = level.channels;
                if let (true, true, Some(next)) = (layer + 1 == level.layers, index + 1 < config.up.len(), skips.last())
                {
                    size = next.size;
                    self.reach(3 * width * size.0 * size.1);
                    let name = format!("{prefix}.upsamplers.0");
                    let convolution = Layer::convolution(&format!("{name}.conv"), size, (width, width), 3);
                    self.push(Block::new(&name, &[self.last]).with([convolution]));
                }
                self.branch(format!("{prefix}.resnets.{layer}"), branch);
            }
            self.unit(prefix, start);
        }
        let convolution = Layer::convolution("conv_out", size, (width, config.out_channels), 3);
        self.push(Block::new("output", &[self.last]).with([convolution]));
        self.structure
    }

    fn resnet(&mut self, name: &str, size: (usize, usize), inputs: usize, outputs: usize, skip: Option<Skip>) {
        let mut layers = vec![
            Layer::convolution(&format!("{name}.conv1"), size, (inputs, outputs), 3),
            Layer::linear(format!("{name}.time_emb_proj"), 1, self.config.time, outputs),
            Layer::convolution(&format!("{name}.conv2"), size, (outputs, outputs), 3),
        ];
        if inputs != outputs {
            layers.push(Layer::convolution(&format!("{name}.conv_shortcut"), size, (inputs, outputs), 1));
        }
        // Input, its norm, the first convolution; or input, result, shortcut and their sum.
        self.reach((2 * inputs + outputs).max(inputs + 3 * outputs) * size.0 * size.1);
        let reads: Vec<usize> = [self.last].into_iter().chain(skip.map(|skip| skip.block)).collect();
        self.push(Block::new(name, &reads).with(layers));
    }

    fn attention(&mut self, name: &str, size: (usize, usize), level: Level) {
        let (pixels, width) = (size.0 * size.1, level.channels);
        match level.attention {
            LevelAttention::None => {}
            LevelAttention::Pixels { heads } => {
                self.reach(6 * width * pixels);
                let mut block = Block::new(name, &[self.last]);
                block.attention(name, pixels, (pixels, width), (heads, width), None);
                self.push(block);
            }
            LevelAttention::Text { heads, depth } => {
                // In the feed-forward: pixels, tokens and their norm, both halves of the hidden layer and their product.
                self.reach((3 + 8 + 4) * width * pixels);
                let projection = |part: &str| match self.config.use_linear_projection {
                    true => Layer::linear(format!("{name}.{part}"), pixels, width, width),
                    false => Layer::convolution(&format!("{name}.{part}"), size, (width, width), 1),
                };
                let (proj_in, proj_out) = (projection("proj_in"), projection("proj_out"));
                let around = self.last;
                self.push(Block::new(format!("{name}.proj_in"), &[around]).with([proj_in]));
                for index in 0..depth {
                    let prefix = format!("{name}.transformer_blocks.{index}");
                    let mut block = Block::new(&prefix, &[self.last]);
                    block.attention(&format!("{prefix}.attn1"), pixels, (pixels, width), (heads, width), None);
                    let attn2 = format!("{prefix}.attn2");
                    let text = self.first_of_text.get_or_insert_with(|| format!("{attn2}.to_k").into());
                    block.attention(&attn2, pixels, (self.text, self.config.text), (heads, width), Some(text));
                    block.feed_forward(&format!("{prefix}.ff"), pixels, width, Gate::Geglu);
                    self.push(block);
                }
                self.push(Block::new(format!("{name}.proj_out"), &[self.last, around]).with([proj_out]));
            }
        }
    }
}

/// `Transformer2DModel` over the pixels.
struct TextAttention {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

/// Between pixels and tokens: a convolution before them in SD1.x, a linear after them since SD2.x.
enum Projection {
    Convolution(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn new(channels: usize, linear: bool, scope: &Scope<'_>) -> Result<Self> {
        Ok(match linear {
            true => Self::Linear(Linear::new(channels, channels, scope)?),
            false => Self::Convolution(Conv2d::new((channels, channels), 1, 1, (0, 0), scope)?),
        })
    }
}

impl TextAttention {
    fn new(config: &UnetConfig, level: Level, heads: usize, depth: usize, scope: &Scope<'_>) -> Result<Self> {
        let channels = level.channels;
        let block =
            |i| TransformerBlock::new(channels, config.text, heads, &scope.at(format!("transformer_blocks.{i}")));
        let projection = |name: &str| Projection::new(channels, config.use_linear_projection, &scope.at(name));
        Ok(Self {
            norm: Norm { eps: 1e-6, ..config.norm }.over(channels, &scope.at("norm"))?,
            proj_in: projection("proj_in")?,
            transformer_blocks: (0..depth).map(block).collect::<Result<_>>()?,
            proj_out: projection("proj_out")?,
        })
    }

    fn forward(&self, x: &Tensor, text: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let mut tokens = {
            let y = self.norm.forward(x)?;
            match &self.proj_in {
                Projection::Convolution(convolution) => tokens_of(&convolution.forward(&y)?)?,
                Projection::Linear(linear) => linear.forward(&tokens_of(&y)?, context)?,
            }
        };
        for block in &self.transformer_blocks {
            tokens = block.forward(tokens, text, context)?;
        }
        let y = match &self.proj_out {
            Projection::Convolution(convolution) => convolution.forward(&pixels_of(&tokens, x)?)?,
            Projection::Linear(linear) => pixels_of(&linear.forward(&tokens, context)?, x)?,
        };
        Ok((x + y)?)
    }
}

enum BlockAttention {
    None,
    Pixels(PixelAttention),
    Text(TextAttention),
}

impl BlockAttention {
    fn new(config: &UnetConfig, level: Level, scope: &Scope<'_>) -> Result<Self> {
        Ok(match level.attention {
            LevelAttention::None => Self::None,
            LevelAttention::Pixels { heads } => {
                Self::Pixels(PixelAttention::new(level.channels, heads, config.norm, scope)?)
            }
            LevelAttention::Text { heads, depth } => {
                Self::Text(TextAttention::new(config, level, heads, depth, scope)?)
            }
        })
    }

    fn forward(&self, x: Tensor, call: &Call<'_>) -> Result<Tensor> {
        match self {
            Self::None => Ok(x),
            Self::Pixels(attention) => attention.forward(&x, call.context),
            Self::Text(attention) => attention.forward(&x, call.conditioning.text()?, call.context),
        }
    }
}

/// What all blocks of a call are told.
struct Call<'a> {
    /// SiLU of the time embedding.
    time: &'a Tensor,
    conditioning: &'a Conditioning,
    context: &'a Context<'a>,
}

/// `DownBlock2D`, `UpBlock2D` and their kin.
struct UnetBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<BlockAttention>,
    resample: Option<Conv2d>,
}

struct MidBlock {
    first: ResnetBlock,
    attention: BlockAttention,
    second: ResnetBlock,
}

/// `UNet2DConditionModel` or `UNet2DModel`.
pub struct Unet {
    config: UnetConfig,
    conv_in: Conv2d,
    time_embedding: Embedder,
    add_embedding: Option<Embedder>,
    down_blocks: Vec<UnetBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UnetBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Unet {
    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &UnetConfig, scope: &Scope<'_>) -> Result<Self> {
        let convolution = |inputs, outputs, scope: Scope<'_>| Conv2d::new((inputs, outputs), 3, 1, (1, 1), &scope);
        let resnet = |inputs, outputs, scope: Scope<'_>| {
            ResnetBlock::new(inputs, outputs, Some(config.time), config.norm, &scope)
        };
        let first = config.down[0].channels;
        // What is kept for the way up.
        let mut skips = vec![first];
        let mut width = first;
        let mut down_blocks = Vec::new();
        for (index, level) in config.down.iter().enumerate() {
            let scope = scope.at(format!("down_blocks.{index}"));
            let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
            for layer in 0..level.layers {
                resnets.push(resnet(width, level.channels, scope.at(format!("resnets.{layer}")))?);
                attentions.push(BlockAttention::new(config, *level, &scope.at(format!("attentions.{layer}")))?);
                width = level.channels;
                skips.push(width);
            }
            let resample = match index + 1 < config.down.len() {
                true => {
                    skips.push(width);
                    let scope = scope.at("downsamplers.0.conv");
                    Some(Conv2d::new((width, width), 3, 2, config.downsample_padding, &scope)?)
                }
                false => None,
            };
            down_blocks.push(UnetBlock { resnets, attentions, resample });
        }
        let middle = scope.at("mid_block");
        let mid_block = MidBlock {
            first: resnet(width, width, middle.at("resnets.0"))?,
            attention: BlockAttention::new(config, config.middle, &middle.at("attentions.0"))?,
            second: resnet(width, width, middle.at("resnets.1"))?,
        };
        let mut up_blocks = Vec::new();
        for (index, level) in config.up.iter().enumerate() {
            let scope = scope.at(format!("up_blocks.{index}"));
            let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
            for layer in 0..level.layers {
                let inputs = width + skips.pop().unwrap_or(0);
                resnets.push(resnet(inputs, level.channels, scope.at(format!("resnets.{layer}")))?);
                attentions.push(BlockAttention::new(config, *level, &scope.at(format!("attentions.{layer}")))?);
                width = level.channels;
            }
            let resample = match index + 1 < config.up.len() {
                true => Some(convolution(width, width, scope.at("upsamplers.0.conv"))?),
                false => None,
            };
            up_blocks.push(UnetBlock { resnets, attentions, resample });
        }
        let add_embedding =
            config.addition.map(|addition| Embedder::new(addition.inputs, config.time, &scope.at("add_embedding")));
        Ok(Self {
            conv_in: convolution(config.in_channels, first, scope.at("conv_in"))?,
            time_embedding: Embedder::new(config.time_proj.channels, config.time, &scope.at("time_embedding"))?,
            add_embedding: add_embedding.transpose()?,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: config.norm.over(width, &scope.at("conv_norm_out"))?,
            conv_out: convolution(width, config.out_channels, scope.at("conv_out"))?,
            config: config.clone(),
        })
    }

    /// SiLU of the embedding of the time and of what SDXL is told beside the text.
    fn time(&self, timesteps: &[f32], conditioning: &Conditioning, context: &Context<'_>) -> Result<Tensor> {
        let mut time = self.time_embedding.forward(&self.config.time_proj.of(timesteps)?, context)?;
        if let (Some(embedding), Some(addition)) = (&self.add_embedding, self.config.addition) {
            let (pooled, time_ids) = (conditioning.pooled()?, conditioning.time_ids()?);
            let (samples, count) = time_ids.dims2()?;
            let ids = time_ids.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let ids = addition.time_proj.of(&ids)?.reshape((samples, count * addition.time_proj.channels))?;
            time = (time + embedding.forward(&Tensor::cat(&[pooled, &ids], 1)?, context)?)?;
        }
        Ok(ops::activation(Activation::Silu, &time)?)
    }
}

impl Denoiser for Unet {
    fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f32],
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let time = self.time(timesteps, conditioning, context)?;
        let call = Call { time: &time, conditioning, context };
        let mut x = self.conv_in.forward(latents)?;
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            for (resnet, attention) in block.resnets.iter().zip(&block.attentions) {
                x = resnet.forward(&x, Some(call.time), context)?;
                x = attention.forward(x, &call)?;
                skips.push(x.clone());
            }
            if let Some(convolution) = &block.resample {
                x = convolution.forward(&x)?;
                skips.push(x.clone());
            }
        }
        x = self.mid_block.first.forward(&x, Some(call.time), context)?;
        x = self.mid_block.attention.forward(x, &call)?;
        x = self.mid_block.second.forward(&x, Some(call.time), context)?;
        for block in &self.up_blocks {
            for (resnet, attention) in block.resnets.iter().zip(&block.attentions) {
                if let Some(skip) = skips.pop() {
                    x = Tensor::cat(&[&x, &skip], 1)?;
                }
                x = resnet.forward(&x, Some(call.time), context)?;
                x = attention.forward(x, &call)?;
            }
            if let (Some(convolution), Some(skip)) = (&block.resample, skips.last()) {
                // A side that was odd before it was halved is one less than twice its half.
                let (_, _, height, width) = skip.dims4()?;
                let larger = ops::upsample_nearest(&x, 2)?.narrow(2, 0, height)?.narrow(3, 0, width)?.contiguous()?;
                x = convolution.forward(&larger)?;
            }
        }
        Ok(self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)?)
    }
}
