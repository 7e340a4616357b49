//! AutoencoderKL, which maps pictures to latents and back.

use crate::autoencoders::autoencoder::{Autoencoder, AutoencoderConfig, no_zeros};
use crate::error::{Error, Result, invalid};
use crate::files::{Checkpoint, DIFFUSERS_STEM, check_layers, read_config};
use crate::layers::{Norm, PixelAttention, ResnetBlock};
use crate::structure::{Description, Rows, Site};
use candle_core::Tensor;
use secateur_nn::{Context, Conv2d, Fit, GroupNorm, Parameters, Wanted, ops};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// No autoencoder halves its pictures more often.
const MOST_LEVELS: usize = 16;

/// Configuration of an `AutoencoderKL`. Fields that a file lacks have diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderKlConfig {
    in_channels: usize,
    out_channels: usize,
    latent_channels: usize,
    block_out_channels: Vec<usize>,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    layers_per_block: usize,
    norm_num_groups: usize,
    scaling_factor: f64,
    shift_factor: Option<f64>,
    mid_block_add_attention: bool,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
}

impl Default for AutoencoderKlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64],
            down_block_types: vec!["DownEncoderBlock2D".into()],
            up_block_types: vec!["UpDecoderBlock2D".into()],
            layers_per_block: 1,
            norm_num_groups: 32,
            scaling_factor: 0.18215,
            shift_factor: None,
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
        }
    }
}

impl AutoencoderKlConfig {
    /// Reads a component's `config.json`.
    ///
    /// # Errors
    /// If it cannot be read, contradicts itself, or asks for something that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let supported = [
            ("act_fn", json!("silu")),
            ("latents_mean", Value::Null),
            ("latents_std", Value::Null),
        ];
        let config: Self = read_config(path, &supported, &["sample_size", "force_upcast"])?;
        let (down, up) = (&config.down_block_types, &config.up_block_types);
        for (field, blocks, known) in [
            ("down_block_types", down, "DownEncoderBlock2D"),
            ("up_block_types", up, "UpDecoderBlock2D"),
        ] {
            if let Some(block) = blocks.iter().find(|block| *block != known) {
                invalid!(path, "{field} {block:?} is not supported; {known:?} is");
            }
        }
        let channels = &config.block_out_channels;
        if channels.is_empty() || channels.len() != down.len() || channels.len() != up.len() {
            invalid!(
                path,
                "block_out_channels, down_block_types and up_block_types differ in length"
            );
        }
        if config.norm_num_groups == 0 || channels.iter().any(|c| c % config.norm_num_groups != 0) {
            let groups = config.norm_num_groups;
            invalid!(path, "channels {channels:?} do not divide into {groups} groups");
        }
        let sizes = [
            ("in_channels", config.in_channels),
            ("out_channels", config.out_channels),
            ("latent_channels", config.latent_channels),
            ("layers_per_block", config.layers_per_block),
        ];
        no_zeros(path, &sizes, config.scaling_factor)?;
        if channels.contains(&0) {
            invalid!(path, "block_out_channels {channels:?} holds a 0");
        }
        if channels.len() > MOST_LEVELS {
            invalid!(
                path,
                "block_out_channels has {} levels, at most {MOST_LEVELS} are read",
                channels.len()
            );
        }
        check_layers(
            "layers_per_block and block_out_channels",
            channels.iter().map(|_| config.layers_per_block),
        )
        .map_err(|problem| Error::invalid(path, problem))?;
        Ok(config)
    }

    /// The parameters that the model takes from a checkpoint, by name.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn parameters(&self) -> Result<BTreeMap<String, Wanted>> {
        Parameters::wanted(Default::default(), |scope| AutoencoderKl::new(self, &scope.into()))
    }

    fn norm(&self) -> Norm {
        Norm { groups: self.norm_num_groups, eps: 1e-6 }
    }
}

impl AutoencoderConfig for AutoencoderKlConfig {
    fn channels(&self) -> usize {
        self.latent_channels
    }

    fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    fn describe(&self) -> Result<Description> {
        Description::of(BTreeMap::new(), |site| AutoencoderKl::new(self, site))
    }

    fn fit(&self, checkpoint: &Checkpoint) -> Result<Fit> {
        renamed(checkpoint.placeholders()?)?.fit(|scope| AutoencoderKl::new(self, &scope.into()))
    }

    fn load(&self, checkpoint: &Checkpoint) -> Result<Box<dyn Autoencoder>> {
        Ok(Box::new(AutoencoderKl::load(self, checkpoint)?))
    }
}

struct MidBlock {
    first: ResnetBlock,
    attention: Option<PixelAttention>,
    second: ResnetBlock,
}

impl MidBlock {
    fn new(channels: usize, config: &AutoencoderKlConfig, site: &Site<'_>) -> Result<Self> {
        let norm = config.norm();
        let attention = match config.mid_block_add_attention {
            true => Some(PixelAttention::new(channels, 1, norm, &site.at("attentions.0"))?),
            false => None,
        };
        Ok(Self {
            first: ResnetBlock::new(channels, channels, None, norm, &site.at("resnets.0"))?,
            attention,
            second: ResnetBlock::new(channels, channels, None, norm, &site.at("resnets.1"))?,
        })
    }

    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let mut x = self.first.forward(x, None, context)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x, context)?;
        }
        self.second.forward(&x, None, context)
    }
}

/// Residual blocks of one resolution, then a change of the resolution on all levels but the last.
struct Level {
    resnets: Vec<ResnetBlock>,
    resample: Option<Conv2d>,
}

struct Encoder {
    conv_in: Conv2d,
    levels: Vec<Level>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    levels: Vec<Level>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// `AutoencoderKL`.
pub struct AutoencoderKl {
    config: AutoencoderKlConfig,
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
}

impl AutoencoderKl {
    /// Opens a component folder.
    ///
    /// # Errors
    /// If its files cannot be read or do not fit each other.
    pub fn open(folder: &Path, variant: Option<&str>) -> Result<Self> {
        let config = AutoencoderKlConfig::open(&folder.join("config.json"))?;
        Self::load(&config, &Checkpoint::open(folder, DIFFUSERS_STEM, variant)?)
    }

    fn load(config: &AutoencoderKlConfig, checkpoint: &Checkpoint) -> Result<Self> {
        let Fit { wanted, .. } = config.fit(checkpoint)?;
        let parameters = checkpoint.load_where(|name| wanted.contains_key(&name_of_today(name)))?;
        renamed(parameters)?.build(|scope| Self::new(config, &scope.into()))
    }

    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &AutoencoderKlConfig, site: &Site<'_>) -> Result<Self> {
        let (norm, latent) = (config.norm(), config.latent_channels);
        let convolution = |inputs, outputs, site: Site<'_>| site.convolution((inputs, outputs), 3);
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let level = |inputs, outputs, count, site: Site<'_>| -> Result<Vec<ResnetBlock>> {
            let inputs = |index| if index == 0 { inputs } else { outputs };
            let block = |i| ResnetBlock::new(inputs(i), outputs, None, norm, &site.at(i));
            (0..count).map(block).collect()
        };

        let encoder = site.at("encoder");
        let conv_in = convolution(config.in_channels, first, encoder.at("conv_in"))?;
        let mut levels = Vec::new();
        let mut width = first;
        for (index, &outputs) in channels.iter().enumerate() {
            let site = encoder.at("down_blocks").at(index);
            let resnets = level(width, outputs, config.layers_per_block, site.at("resnets"))?;
            let resample = || {
                // diffusers pads right and below only.
                let site = site.at("downsamplers.0.conv");
                Conv2d::new((outputs, outputs), 3, 2, (0, 1), &site)
            };
            let resample = (index + 1 < channels.len()).then(resample).transpose()?;
            levels.push(Level { resnets, resample });
            width = outputs;
        }
        let encoder = Encoder {
            conv_in,
            levels,
            mid_block: MidBlock::new(last, config, &encoder.at("mid_block"))?,
            conv_norm_out: norm.over(last, &encoder.at("conv_norm_out"))?,
            conv_out: convolution(last, 2 * latent, encoder.at("conv_out"))?,
        };

        let pointwise = |wanted: bool, channels: usize, name: &str| {
            wanted.then(|| site.at(name).convolution((channels, channels), 1)).transpose()
        };
        let quant_conv = pointwise(config.use_quant_conv, 2 * latent, "quant_conv")?;
        let post_quant_conv = pointwise(config.use_post_quant_conv, latent, "post_quant_conv")?;

        let mut decoder = site.over(Rows::Pixels(0)).at("decoder").block(&[]);
        let conv_in = convolution(latent, last, decoder.at("conv_in"))?;
        let mid_block = MidBlock::new(last, config, &decoder.at("mid_block"))?;
        let mut levels = Vec::new();
        let mut width = last;
        for (index, &outputs) in channels.iter().rev().enumerate() {
            let site = decoder.at("up_blocks").at(index);
            let resnets = level(width, outputs, config.layers_per_block + 1, site.at("resnets"))?;
            let resample = match index + 1 == channels.len() {
                false => {
                    decoder = decoder.larger(2);
                    let site = site.over(decoder.rows()).at("upsamplers.0.conv");
                    Some(convolution(outputs, outputs, site)?)
                }
                true => None,
            };
            levels.push(Level { resnets, resample });
            width = outputs;
        }
        let decoder = Decoder {
            conv_in,
            mid_block,
            levels,
            conv_norm_out: norm.over(first, &decoder.at("conv_norm_out"))?,
            conv_out: convolution(first, config.out_channels, decoder.at("conv_out"))?,
        };
        Ok(Self { encoder, decoder, quant_conv, post_quant_conv, config: config.clone() })
    }

    /// Encodes pictures in [-1, 1] (samples x 3 x height x width) to the mean and the log-variance
    /// of the unscaled latents (samples x channels x height / factor x width / factor each).
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn encode(&self, pictures: &Tensor) -> Result<(Tensor, Tensor)> {
        let context = &Context::default();
        let mut x = self.encoder.conv_in.forward(pictures, context)?;
        for level in &self.encoder.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x, None, context)?;
            }
            if let Some(convolution) = &level.resample {
                x = convolution.forward(&x, context)?;
            }
        }
        x = self.encoder.mid_block.forward(&x, context)?;
        x = self
            .encoder
            .conv_out
            .forward(&self.encoder.conv_norm_out.forward_silu(&x)?, context)?;
        if let Some(convolution) = &self.quant_conv {
            x = convolution.forward(&x, context)?;
        }
        let latent = self.config.latent_channels;
        Ok((x.narrow(1, 0, latent)?, x.narrow(1, latent, latent)?.clamp(-30f32, 20f32)?))
    }
}

impl Autoencoder for AutoencoderKl {
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let context = &Context::default();
        let mut x = match &self.post_quant_conv {
            Some(convolution) => convolution.forward(latents, context)?,
            None => latents.clone(),
        };
        x = self.decoder.mid_block.forward(&self.decoder.conv_in.forward(&x, context)?, context)?;
        for level in &self.decoder.levels {
            for resnet in &level.resnets {
                x = resnet.forward(&x, None, context)?;
            }
            if let Some(convolution) = &level.resample {
                x = convolution.forward(&ops::upsample_nearest(&x, 2)?, context)?;
            }
        }
        Ok(self.decoder.conv_out.forward(&self.decoder.conv_norm_out.forward_silu(&x)?, context)?)
    }

    fn scale_and_shift(&self) -> (f64, f64) {
        (self.config.scaling_factor, self.config.shift_factor.unwrap_or(0.0))
    }
}

/// The current name of a parameter. Older files have other names for the attention's linears.
fn name_of_today(name: &str) -> String {
    const NAMES: [(&str, &str); 4] = [
        (".query.", ".to_q."),
        (".key.", ".to_k."),
        (".value.", ".to_v."),
        (".proj_attn.", ".to_out.0."),
    ];
    match name.contains(".attentions.") {
        true => NAMES.iter().fold(name.to_owned(), |name, (old, new)| name.replace(old, new)),
        false => name.to_owned(),
    }
}

/// Renames and reshapes the attention's linears to their current form. Some older files hold 1x1
/// convolutions.
fn renamed(parameters: Parameters) -> Result<Parameters> {
    let parameters = parameters.map(|name, tensor| {
        if !name.contains(".attentions.") {
            return Ok((name, tensor));
        }
        let name = name_of_today(&name);
        let tensor = match *tensor.dims() {
            [outputs, inputs, 1, 1] => tensor.reshape((outputs, inputs))?,
            _ => tensor,
        };
        Ok((name, tensor))
    })?;
    Ok(parameters)
}
