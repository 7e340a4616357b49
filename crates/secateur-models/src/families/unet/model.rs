//! UNet2DConditionModel (SD1.x, SD2.x, SDXL) and UNet2DModel (DDPM).

use crate::conditioning::Conditioning;
use crate::error::{Error, Result};
use crate::families::denoiser::Denoiser;
use crate::families::unet::config::{Level, LevelAttention, UnetConfig};
use crate::layers::{
    Embedder, Norm, PixelAttention, ResnetBlock, TransformerBlock, pixels_of, tokens_of,
};
use candle_core::{DType, Tensor};
use secateur_nn::{Activation, Context, Conv2d, GroupNorm, Linear, Scope, ops};

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
    fn new(
        config: &UnetConfig,
        level: Level,
        heads: usize,
        depth: usize,
        scope: &Scope<'_>,
    ) -> Result<Self> {
        let channels = level.channels;
        let block = |i| {
            TransformerBlock::new(
                channels,
                config.text,
                heads,
                &scope.at(format!("transformer_blocks.{i}")),
            )
        };
        let projection =
            |name: &str| Projection::new(channels, config.use_linear_projection, &scope.at(name));
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

/// What all blocks of a call are given.
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

impl UnetBlock {
    /// All that it makes of `inputs`, its only input: the last is what goes on.
    fn down(&self, name: &str, inputs: Vec<Tensor>, call: &Call<'_>) -> Result<Vec<Tensor>> {
        let mut x = one(name, inputs)?;
        let mut made = Vec::with_capacity(self.resnets.len() + 1);
        for (layer, (resnet, attention)) in self.resnets.iter().zip(&self.attentions).enumerate() {
            [x] =
                call.context.gated_array(format_args!("{name}.resnets.{layer}"), [x], |[x]| {
                    let x = resnet.forward(&x, Some(call.time), call.context)?;
                    Ok::<_, Error>([attention.forward(x, call)?])
                })?;
            made.push(x.clone());
        }
        if let Some(convolution) = &self.resample {
            let halved = |[x]: [Tensor; 1]| Ok::<_, Error>([convolution.forward(&x)?]);
            made.extend(call.context.gated_array(
                format_args!("{name}.downsamplers.0"),
                [x],
                halved,
            )?);
        }
        Ok(made)
    }

    /// `inputs`: what comes from below, and what was kept on the way down for its layers, that of
    /// the last layer first. What it makes is of `size` (height, width), where that of the next
    /// block differs.
    fn up(
        &self,
        name: &str,
        inputs: Vec<Tensor>,
        size: Option<(usize, usize)>,
        call: &Call<'_>,
    ) -> Result<Vec<Tensor>> {
        let mut skips = inputs;
        let mut x: Vec<Tensor> = skips.drain(..1).collect();
        for (layer, (resnet, attention)) in self.resnets.iter().zip(&self.attentions).enumerate() {
            let name = format!("{name}.resnets.{layer}");
            x.extend(skips.pop());
            x = call.context.gated(&name, x, |inputs| {
                let joined = Tensor::cat(&inputs, 1)?;
                drop(inputs);
                let mut x = resnet.forward(&joined, Some(call.time), call.context)?;
                drop(joined);
                x = attention.forward(x, call)?;
                if let (true, Some(convolution), Some((height, width))) =
                    (layer + 1 == self.resnets.len(), &self.resample, size)
                {
                    // A side that was odd before it was halved is one less than twice its half.
                    let larger = ops::upsample_nearest(&x, 2)?;
                    x = convolution.forward(
                        &larger.narrow(2, 0, height)?.narrow(3, 0, width)?.contiguous()?,
                    )?;
                }
                Ok::<_, Error>(vec![x])
            })?;
        }
        Ok(x)
    }
}

/// The only one of the tensors at a stretch.
fn one(stretch: &str, tensors: Vec<Tensor>) -> Result<Tensor> {
    let count = tensors.len();
    let problem = || Error::Request(format!("{stretch}: {count} tensors where one was expected"));
    <[Tensor; 1]>::try_from(tensors).map(|[x]| x).map_err(|_| problem())
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
        let convolution = |inputs, outputs, scope: Scope<'_>| {
            Conv2d::new((inputs, outputs), 3, 1, (1, 1), &scope)
        };
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
                attentions.push(BlockAttention::new(
                    config,
                    *level,
                    &scope.at(format!("attentions.{layer}")),
                )?);
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
                attentions.push(BlockAttention::new(
                    config,
                    *level,
                    &scope.at(format!("attentions.{layer}")),
                )?);
                width = level.channels;
            }
            let resample = match index + 1 < config.up.len() {
                true => Some(convolution(width, width, scope.at("upsamplers.0.conv"))?),
                false => None,
            };
            up_blocks.push(UnetBlock { resnets, attentions, resample });
        }
        let add_embedding = config.addition.map(|addition| {
            Embedder::new(addition.inputs, config.time, &scope.at("add_embedding"))
        });
        Ok(Self {
            conv_in: convolution(config.in_channels, first, scope.at("conv_in"))?,
            time_embedding: Embedder::new(
                config.time_proj.channels,
                config.time,
                &scope.at("time_embedding"),
            )?,
            add_embedding: add_embedding.transpose()?,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: config.norm.over(width, &scope.at("conv_norm_out"))?,
            conv_out: convolution(width, config.out_channels, scope.at("conv_out"))?,
            config: config.clone(),
        })
    }

    /// SiLU of the embedding of the time and of what SDXL is conditioned on beside the text.
    fn time(
        &self,
        timesteps: &[f32],
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let mut time =
            self.time_embedding.forward(&self.config.time_proj.of(timesteps)?, context)?;
        if let (Some(embedding), Some(addition)) = (&self.add_embedding, self.config.addition) {
            let (pooled, time_ids) = (conditioning.pooled()?, conditioning.time_ids()?);
            let (samples, count) = time_ids.dims2()?;
            let ids = time_ids.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let ids = addition
                .time_proj
                .of(&ids)?
                .reshape((samples, count * addition.time_proj.channels))?;
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
        // What is kept for the way up: all that the way down makes.
        let mut skips = vec![x.clone()];
        for (index, block) in self.down_blocks.iter().enumerate() {
            let name = format!("down_blocks.{index}");
            let made =
                context.gated(&name, vec![x.clone()], |inputs| block.down(&name, inputs, &call))?;
            x = made.last().cloned().unwrap_or(x);
            skips.extend(made);
        }
        [x] = context.gated_array("mid_block", [x], |[x]| {
            let x = self.mid_block.first.forward(&x, Some(call.time), context)?;
            let x = self.mid_block.attention.forward(x, &call)?;
            Ok::<_, Error>([self.mid_block.second.forward(&x, Some(call.time), context)?])
        })?;
        for (index, block) in self.up_blocks.iter().enumerate() {
            let name = format!("up_blocks.{index}");
            let own = skips.split_off(skips.len().saturating_sub(block.resnets.len()));
            let size = skips
                .last()
                .map(|skip| skip.dims4())
                .transpose()?
                .map(|(_, _, height, width)| (height, width));
            let inputs = [x].into_iter().chain(own).collect();
            x = one(
                &name,
                context.gated(&name, inputs, |inputs| block.up(&name, inputs, size, &call))?,
            )?;
        }
        Ok(self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)?)
    }
}
