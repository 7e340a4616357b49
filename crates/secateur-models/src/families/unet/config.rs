//! Configuration of UNet2DConditionModel and UNet2DModel.

use crate::error::Result;
use crate::files::{Numbers, Options, options};
use crate::layers::{Norm, Sinusoids};
use serde::Deserialize;
use serde_json::{Value, json};

/// The number of SDXL's sizes: the original size, the corner of the crop, and the wanted size.
const SIZES: usize = 6;
/// No UNet halves its latents more often.
const MOST_LEVELS: usize = 16;

/// Configuration of a `UNet2DConditionModel` or a `UNet2DModel`.
#[derive(Clone, Debug)]
pub struct UnetConfig {
    pub(crate) sample_size: (usize, usize),
    pub(super) unknown_size: bool,
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    /// Width of the time embedding.
    pub(crate) time: usize,
    pub(crate) time_proj: Sinusoids,
    /// SDXL's conditioning besides the text.
    pub(crate) addition: Option<Addition>,
    pub(crate) norm: Norm,
    /// Zeros before and after the input of a convolution that halves the resolution.
    pub(crate) downsample_padding: (usize, usize),
    pub(crate) down: Vec<Level>,
    pub(crate) middle: Level,
    /// From the lowest resolution on.
    pub(crate) up: Vec<Level>,
    /// Width of the text states; 0 where there is no text.
    pub(crate) text: usize,
    pub(crate) use_linear_projection: bool,
}

/// Residual blocks of one resolution on one side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Level {
    pub(crate) channels: usize,
    /// Residual blocks.
    pub(crate) layers: usize,
    pub(crate) attention: LevelAttention,
}

/// What follows each residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LevelAttention {
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
pub(crate) struct Addition {
    pub(crate) time_proj: Sinusoids,
    /// Pooled text and all sizes as sinusoids.
    pub(crate) inputs: usize,
}

/// What both classes have in common, as the file has it.
#[derive(Deserialize)]
struct File {
    #[serde(rename = "_class_name")]
    class: String,
    sample_size: Option<Numbers>,
    in_channels: usize,
    out_channels: usize,
    block_out_channels: Vec<usize>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    #[serde(default = "two")]
    layers_per_block: Numbers,
    #[serde(default = "eight")]
    attention_head_dim: Option<Numbers>,
    num_attention_heads: Option<Numbers>,
    #[serde(default = "one")]
    transformer_layers_per_block: Numbers,
    cross_attention_dim: Option<Numbers>,
    #[serde(default)]
    use_linear_projection: bool,
    norm_num_groups: usize,
    #[serde(default = "norm_eps")]
    norm_eps: f32,
    #[serde(default = "options::number::<1>")]
    downsample_padding: usize,
    #[serde(default = "yes")]
    flip_sin_to_cos: bool,
    #[serde(default)]
    freq_shift: f64,
    time_embedding_dim: Option<usize>,
    addition_embed_type: Option<String>,
    addition_time_embed_dim: Option<usize>,
    projection_class_embeddings_input_dim: Option<usize>,
    #[serde(default = "yes")]
    add_attention: bool,
}

fn yes() -> bool {
    true
}
fn one() -> Numbers {
    Numbers::All(1)
}
fn two() -> Numbers {
    Numbers::All(2)
}
fn eight() -> Option<Numbers> {
    Some(Numbers::All(8))
}
fn norm_eps() -> f32 {
    1e-5
}

/// Options with a single supported value, which is also their default.
fn supported(conditional: bool) -> [(&'static str, Value); 28] {
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
        (
            "mid_block_type",
            json!(if conditional { "UNetMidBlock2DCrossAttn" } else { "UNetMidBlock2D" }),
        ),
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

/// Options that change nothing here: those of training, and numbers are of f32 anyway.
const UNREAD: [&str; 3] = ["dropout", "num_train_timesteps", "upcast_attention"];

/// Height and width of the latents where the file does not say.
const SIDE: usize = 64;

impl UnetConfig {
    pub(crate) fn read(mut options: Options<'_>) -> Result<Self> {
        let file: File = options.read()?;
        let conditional = file.class == "UNet2DConditionModel";
        let config =
            Self::from_file(&file, conditional).map_err(|problem| options.invalid(problem))?;
        options.finish(&supported(conditional), &UNREAD)?;
        Ok(config)
    }

    fn from_file(file: &File, conditional: bool) -> std::result::Result<Self, String> {
        let (down, middle, up) = file.levels(conditional)?;
        options::check_eps("norm_eps", file.norm_eps.into())?;
        let channels = &file.block_out_channels;
        let (height, width) = match &file.sample_size {
            None => (SIDE, SIDE),
            Some(Numbers::All(side)) => (*side, *side),
            Some(Numbers::Each(sides)) => match sides[..] {
                [height, width] => (height, width),
                _ => {
                    return Err(format!(
                        "sample_size {sides:?} is neither a side nor height and width"
                    ));
                }
            },
        };
        let sizes = [
            ("sample_size", height.min(width)),
            ("in_channels", file.in_channels),
            ("out_channels", file.out_channels),
            ("time_embedding_dim", file.time_embedding_dim.unwrap_or(1)),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("{name} must not be 0"));
        }
        let groups = file.norm_num_groups;
        if groups == 0 || channels.iter().any(|c| *c == 0 || c % groups != 0) {
            return Err(format!(
                "block_out_channels {channels:?} do not divide into {groups} groups"
            ));
        }
        let sinusoids = |channels| Sinusoids {
            channels,
            flip_sin_to_cos: file.flip_sin_to_cos,
            freq_shift: file.freq_shift,
        };
        let addition = match file.addition_embed_type.as_deref() {
            None => None,
            Some("text_time") => {
                match (file.addition_time_embed_dim, file.projection_class_embeddings_input_dim) {
                    (Some(channels), Some(inputs))
                        if channels == 0 || inputs <= SIZES * channels =>
                    {
                        return Err(format!(
                            "projection_class_embeddings_input_dim {inputs} does not hold {SIZES} \
                             times \
                         addition_time_embed_dim {channels} beside the pooled text"
                        ));
                    }
                    (Some(channels), Some(inputs)) => {
                        Some(Addition { time_proj: sinusoids(channels), inputs })
                    }
                    _ => {
                        let needed =
                            "addition_time_embed_dim and projection_class_embeddings_input_dim";
                        return Err(format!("addition_embed_type text_time needs {needed}"));
                    }
                }
            }
            Some(other) => return Err(format!("addition_embed_type {other:?} is not supported")),
        };
        let text = match (&file.cross_attention_dim, conditional) {
            (_, false) => 0,
            (Some(Numbers::All(width)), true) => *width,
            (Some(Numbers::Each(widths)), true)
                if widths.windows(2).all(|w| w[0] == w[1]) && !widths.is_empty() =>
            {
                widths[0]
            }
            (Some(Numbers::Each(_)), true) => {
                return Err("a cross_attention_dim a level is not supported".into());
            }
            (None, true) => return Err("cross_attention_dim is missing".into()),
        };
        Ok(Self {
            sample_size: (height, width),
            unknown_size: file.sample_size.is_none(),
            in_channels: file.in_channels,
            out_channels: file.out_channels,
            time: file.time_embedding_dim.unwrap_or(4 * channels[0]),
            time_proj: sinusoids(channels[0]),
            addition,
            norm: Norm { groups, eps: file.norm_eps },
            // diffusers pads right and below only where it is asked not to pad.
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
    fn levels(
        &self,
        conditional: bool,
    ) -> std::result::Result<(Vec<Level>, Level, Vec<Level>), String> {
        let channels = &self.block_out_channels;
        let count = channels.len();
        if count == 0 || self.down_block_types.len() != count || self.up_block_types.len() != count
        {
            return Err(
                "block_out_channels, down_block_types and up_block_types differ in length".into()
            );
        }
        // diffusers calls the number of heads attention_head_dim, unless both are there.
        let heads = match (conditional, &self.num_attention_heads) {
            (true, Some(heads)) => Some(heads),
            _ => self.attention_head_dim.as_ref(),
        };
        if count > MOST_LEVELS {
            return Err(format!(
                "block_out_channels has {count} levels, at most {MOST_LEVELS} are read"
            ));
        }
        let per_level =
            [Some(&self.layers_per_block), heads, Some(&self.transformer_layers_per_block)];
        if per_level.into_iter().flatten().any(|values| !values.fits(count)) {
            return Err(format!(
                "layers_per_block, attention_head_dim, num_attention_heads and \
                 transformer_layers_per_block must be \
                 single numbers or {count} each, as block_out_channels"
            ));
        }
        let depth = |index| self.transformer_layers_per_block.at(index).unwrap_or(1).max(1);
        let layers =
            |index| self.layers_per_block.at(index).unwrap_or(2).saturating_mul(depth(index));
        options::check_layers(
            "layers_per_block x transformer_layers_per_block",
            (0..count).map(layers),
        )?;
        let level = |index: usize, kind: &str, more: usize| {
            let channels = channels[index];
            let number = heads.and_then(|heads| heads.at(index));
            let attention = match kind {
                "DownBlock2D" | "UpBlock2D" => LevelAttention::None,
                "AttnDownBlock2D" | "AttnUpBlock2D" if !conditional => LevelAttention::Pixels {
                    // Here it is what it is called.
                    heads: channels.checked_div(number.unwrap_or(channels)).unwrap_or(0),
                },
                "CrossAttnDownBlock2D" | "CrossAttnUpBlock2D" if conditional => {
                    LevelAttention::Text {
                        heads: number.unwrap_or(8),
                        depth: self.transformer_layers_per_block.at(index).unwrap_or(1),
                    }
                }
                other => {
                    return Err(format!("block {other:?} is not supported in a {}", self.class));
                }
            };
            if let LevelAttention::Pixels { heads } | LevelAttention::Text { heads, .. } = attention
                && !channels.is_multiple_of(heads)
            {
                return Err(format!("{channels} channels do not divide into {heads} heads"));
            }
            Ok(Level {
                channels,
                layers: self.layers_per_block.at(index).unwrap_or(2) + more,
                attention,
            })
        };
        let down = (0..count).map(|index| level(index, &self.down_block_types[index], 0));
        let up = (0..count).map(|index| level(count - 1 - index, &self.up_block_types[index], 1));
        let kind = match (conditional, self.add_attention) {
            (true, _) => "CrossAttnDownBlock2D",
            (false, true) => "AttnDownBlock2D",
            (false, false) => "DownBlock2D",
        };
        let middle = Level { layers: 1, ..level(count - 1, kind, 0)? };
        Ok((
            down.collect::<std::result::Result<_, String>>()?,
            middle,
            up.collect::<std::result::Result<_, String>>()?,
        ))
    }
}
