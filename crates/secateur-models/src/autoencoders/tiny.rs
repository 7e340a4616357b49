//! AutoencoderTiny (TAESD): a small, distilled stand-in for an AutoencoderKL.

use crate::autoencoders::autoencoder::{Autoencoder, AutoencoderConfig, no_zeros};
use crate::error::{Error, Result};
use crate::files::{Checkpoint, DIFFUSERS_STEM, check_layers, read_config};
use crate::structure::{Description, Rows, Site};
use candle_core::Tensor;
use secateur_nn::{Activation, Context, Conv2d, Fit, ops};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// No autoencoder halves its pictures more often.
const MOST_LEVELS: usize = 16;
/// No latent is higher or wider in pixels.
const LARGEST_FACTOR: usize = 1 << 15;

/// Configuration of an `AutoencoderTiny`. Fields that a file lacks have diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AutoencoderTinyConfig {
    in_channels: usize,
    out_channels: usize,
    latent_channels: usize,
    encoder_block_out_channels: Vec<usize>,
    decoder_block_out_channels: Vec<usize>,
    num_encoder_blocks: Vec<usize>,
    num_decoder_blocks: Vec<usize>,
    upsampling_scaling_factor: usize,
    scaling_factor: f64,
    shift_factor: f64,
}

impl Default for AutoencoderTinyConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            upsampling_scaling_factor: 2,
            scaling_factor: 1.0,
            shift_factor: 0.0,
        }
    }
}

impl AutoencoderTinyConfig {
    /// Reads a component's `config.json`.
    ///
    /// # Errors
    /// If it cannot be read, contradicts itself, or asks for something that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        let supported = [("act_fn", json!("relu")), ("upsample_fn", json!("nearest"))];
        let unread = ["block_out_channels", "force_upcast", "latent_magnitude", "latent_shift"];
        let config: Self = read_config(path, &supported, &unread)?;
        let invalid = |problem: String| Err(Error::invalid(path, problem));
        for (side, channels, blocks) in [
            ("encoder", &config.encoder_block_out_channels, &config.num_encoder_blocks),
            ("decoder", &config.decoder_block_out_channels, &config.num_decoder_blocks),
        ] {
            if channels.is_empty() || channels.len() != blocks.len() {
                return invalid(format!(
                    "{side}_block_out_channels and num_{side}_blocks differ in length"
                ));
            }
            if channels.iter().any(|&c| c != channels[0]) {
                return invalid(format!(
                    "{side}_block_out_channels {channels:?}: the model has one width a side"
                ));
            }
            if channels[0] == 0 || channels.len() > MOST_LEVELS {
                return invalid(format!(
                    "{side}_block_out_channels must be 1 to {MOST_LEVELS} numbers that are not 0, \
                     not {channels:?}"
                ));
            }
            let layers = check_layers(&format!("num_{side}_blocks"), blocks.iter().copied());
            layers.map_err(|problem| Error::invalid(path, problem))?;
        }
        let sizes = [
            ("in_channels", config.in_channels),
            ("out_channels", config.out_channels),
            ("latent_channels", config.latent_channels),
            ("upsampling_scaling_factor", config.upsampling_scaling_factor),
        ];
        no_zeros(path, &sizes, config.scaling_factor)?;
        if config.factor() > LARGEST_FACTOR {
            return invalid(format!(
                "upsampling_scaling_factor {} is too large",
                config.upsampling_scaling_factor
            ));
        }
        Ok(config)
    }
}

impl AutoencoderConfig for AutoencoderTinyConfig {
    fn channels(&self) -> usize {
        self.latent_channels
    }

    fn factor(&self) -> usize {
        let levels = self.decoder_block_out_channels.len() as u32;
        self.upsampling_scaling_factor.saturating_pow(levels - 1)
    }

    fn describe(&self) -> Result<Description> {
        Description::of(BTreeMap::new(), |site| AutoencoderTiny::new(self, site))
    }

    fn fit(&self, checkpoint: &Checkpoint) -> Result<Fit> {
        checkpoint.fit(|scope| AutoencoderTiny::new(self, &scope.into()))
    }

    fn load(&self, checkpoint: &Checkpoint) -> Result<Box<dyn Autoencoder>> {
        Ok(Box::new(AutoencoderTiny::load(self, checkpoint)?))
    }
}

/// `AutoencoderTinyBlock` with as many channels in as out: three convolutions, and the input added
/// to their output.
struct Block {
    convolutions: [Conv2d; 3],
}

impl Block {
    fn new(channels: usize, site: &Site<'_>) -> Result<Self> {
        let convolution =
            |place: usize| site.at("conv").at(place).convolution((channels, channels), 3);
        Ok(Self { convolutions: [convolution(0)?, convolution(2)?, convolution(4)?] })
    }

    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let [first, second, third] = &self.convolutions;
        let y = relu(&first.forward(x, context)?)?;
        let y = relu(&second.forward(&y, context)?)?;
        relu(&ops::add(&third.forward(&y, context)?, x)?)
    }
}

fn relu(x: &Tensor) -> Result<Tensor> {
    Ok(ops::activation(Activation::Relu, x)?)
}

/// A layer of `EncoderTiny` or `DecoderTiny`, named by its index among the others.
enum Layer {
    Convolution(Conv2d),
    Relu,
    Block(Block),
    Upsample(usize),
}

fn run(layers: &[Layer], mut x: Tensor) -> Result<Tensor> {
    let context = &Context::default();
    for layer in layers {
        x = match layer {
            Layer::Convolution(convolution) => convolution.forward(&x, context)?,
            Layer::Relu => relu(&x)?,
            Layer::Block(block) => block.forward(&x, context)?,
            Layer::Upsample(factor) => ops::upsample_nearest(&x, *factor)?,
        };
    }
    Ok(x)
}

fn encoder(config: &AutoencoderTinyConfig, site: &Site<'_>) -> Result<Vec<Layer>> {
    let channels = config.encoder_block_out_channels[0];
    let mut layers =
        vec![Layer::Convolution(site.at(0).convolution((config.in_channels, channels), 3)?)];
    for (stage, &blocks) in config.num_encoder_blocks.iter().enumerate() {
        if stage > 0 {
            let halving =
                Conv2d::without_bias((channels, channels), 3, 2, (1, 1), &site.at(layers.len()))?;
            layers.push(Layer::Convolution(halving));
        }
        for _ in 0..blocks {
            layers.push(Layer::Block(Block::new(channels, &site.at(layers.len()))?));
        }
    }
    let last = site.at(layers.len()).convolution((channels, config.latent_channels), 3)?;
    layers.push(Layer::Convolution(last));
    Ok(layers)
}

/// Builds the decoder. `site` is over the latents.
fn decoder(config: &AutoencoderTinyConfig, mut site: Site<'_>) -> Result<Vec<Layer>> {
    let channels = config.decoder_block_out_channels[0];
    let mut layers = vec![
        Layer::Convolution(site.at(0).convolution((config.latent_channels, channels), 3)?),
        Layer::Relu,
    ];
    for (stage, &blocks) in config.num_decoder_blocks.iter().enumerate() {
        if stage > 0 {
            layers.push(Layer::Upsample(config.upsampling_scaling_factor));
            site = site.larger(config.upsampling_scaling_factor);
            let smoothing = site.at(layers.len());
            let smoothing = smoothing.convolution_without_bias((channels, channels), 3)?;
            layers.push(Layer::Convolution(smoothing));
        }
        for _ in 0..blocks {
            layers.push(Layer::Block(Block::new(channels, &site.at(layers.len()))?));
        }
    }
    let last = site.at(layers.len()).convolution((channels, config.out_channels), 3)?;
    layers.push(Layer::Convolution(last));
    Ok(layers)
}

/// `AutoencoderTiny`.
pub struct AutoencoderTiny {
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
    config: AutoencoderTinyConfig,
}

impl AutoencoderTiny {
    /// Opens a component folder.
    ///
    /// # Errors
    /// If its files cannot be read or do not fit each other.
    pub fn open(folder: &Path, variant: Option<&str>) -> Result<Self> {
        let config = AutoencoderTinyConfig::open(&folder.join("config.json"))?;
        Self::load(&config, &Checkpoint::open(folder, DIFFUSERS_STEM, variant)?)
    }

    fn load(config: &AutoencoderTinyConfig, checkpoint: &Checkpoint) -> Result<Self> {
        checkpoint.build(|scope| Self::new(config, &scope.into()))
    }

    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    pub fn new(config: &AutoencoderTinyConfig, site: &Site<'_>) -> Result<Self> {
        Ok(Self {
            encoder: encoder(config, &site.at("encoder.layers"))?,
            decoder: decoder(config, site.at("decoder.layers").over(Rows::Pixels(0)).block(&[]))?,
            config: config.clone(),
        })
    }

    /// Encodes pictures in [-1, 1] (samples x 3 x height x width) to unscaled latents (samples x
    /// channels x height / factor x width / factor).
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn encode(&self, pictures: &Tensor) -> Result<Tensor> {
        run(&self.encoder, pictures.affine(0.5, 0.5)?)
    }
}

impl Autoencoder for AutoencoderTiny {
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        const BOUND: f64 = 3.0;
        let latents = (latents.affine(1.0 / BOUND, 0.0)?.tanh()? * BOUND)?;
        Ok(run(&self.decoder, latents)?.affine(2.0, -1.0)?)
    }

    fn scale_and_shift(&self) -> (f64, f64) {
        (self.config.scaling_factor, self.config.shift_factor)
    }
}
