//! UNet2DConditionModel (SD1.x, SD2.x, SDXL) and UNet2DModel (DDPM).

use crate::conditioning::Conditioning;
use crate::error::{Error, Result};
use crate::families::denoiser::Denoiser;
use crate::families::unet::config::{Addition, Level, LevelAttention, UnetConfig};
use crate::layers::{Embedder, Norm, PixelAttention, ResnetBlock, TransformerBlock};
use crate::structure::{Rows, Site};
use candle_core::Tensor;
use secateur_nn::{Activation, Context, Conv2d, GroupNorm, Linear, Placement, ops};

/// Hidden neurons of a feed-forward, per channel; no configuration says otherwise.
const MLP_RATIO: usize = 4;

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
    fn new(channels: usize, linear: bool, site: &Site<'_>) -> Result<Self> {
        Ok(match linear {
            true => Self::Linear(site.linear(channels, channels)?),
            false => Self::Convolution(site.convolution((channels, channels), 1)?),
        })
    }
}

impl TextAttention {
    fn new(
        config: &UnetConfig,
        channels: usize,
        heads: usize,
        depth: usize,
        site: &Site<'_>,
    ) -> Result<Self> {
        // The input goes around all of it.
        let around = site.last_block();
        let site = site.beside([(site.rows(), channels)]);
        let projection = |name: &str, also: &[usize]| {
            Projection::new(channels, config.use_linear_projection, &site.at(name).block(also))
        };
        let block = |index| {
            let site = site.at("transformer_blocks").at(index).block(&[]);
            TransformerBlock::new(channels, config.text, heads, MLP_RATIO * channels, &site)
        };
        Ok(Self {
            norm: Norm { eps: 1e-6, ..config.norm }.over(channels, &site.at("norm"))?,
            proj_in: projection("proj_in", &[])?,
            transformer_blocks: (0..depth).map(block).collect::<Result<_>>()?,
            proj_out: projection("proj_out", &[around])?,
        })
    }

    fn forward(&self, x: &Tensor, text: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let size = (height, width);
        let mut tokens = {
            let y = self.norm.forward(x)?;
            match &self.proj_in {
                Projection::Convolution(convolution) => {
                    ops::tokens(&convolution.forward(&y, context)?)?
                }
                Projection::Linear(linear) => linear.forward(&ops::tokens(&y)?, context)?,
            }
        };
        for block in &self.transformer_blocks {
            tokens = block.forward(tokens, text, context)?;
        }
        let y = match &self.proj_out {
            Projection::Convolution(convolution) => {
                convolution.forward(&ops::pixels(&tokens, size)?, context)?
            }
            Projection::Linear(linear) => ops::pixels(&linear.forward(&tokens, context)?, size)?,
        };
        Ok(ops::add(x, &y)?)
    }
}

enum BlockAttention {
    None,
    Pixels(PixelAttention),
    Text(TextAttention),
}

impl BlockAttention {
    fn new(config: &UnetConfig, level: Level, site: &Site<'_>) -> Result<Self> {
        Ok(match level.attention {
            LevelAttention::None => Self::None,
            LevelAttention::Pixels { heads } => {
                let site = site.block(&[]);
                Self::Pixels(PixelAttention::new(level.channels, heads, config.norm, &site)?)
            }
            LevelAttention::Text { heads, depth } => {
                Self::Text(TextAttention::new(config, level.channels, heads, depth, site)?)
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

/// The arguments that all blocks of a call share.
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
    /// Computes the block on its only input. Returns all tensors that are kept for the way up; the
    /// last one is the next block's input.
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
            let halved =
                |[x]: [Tensor; 1]| Ok::<_, Error>([convolution.forward(&x, call.context)?]);
            made.extend(call.context.gated_array(
                format_args!("{name}.downsamplers.0"),
                [x],
                halved,
            )?);
        }
        Ok(made)
    }

    /// Computes the block. `inputs` are the output of the block before, then the tensors kept on
    /// the way down for its layers, in reverse order of the layers. `size` (height, width) is that
    /// of the output, if the next block has another size.
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
                let joined = ops::cat_channels(&inputs)?;
                drop(inputs);
                let mut x = resnet.forward(&joined, Some(call.time), call.context)?;
                drop(joined);
                x = attention.forward(x, call)?;
                if let (true, Some(convolution), Some((height, width))) =
                    (layer + 1 == self.resnets.len(), &self.resample, size)
                {
                    // A side that was odd before it was halved is one less than twice its half.
                    let larger = ops::upsample_nearest(&x, 2)?;
                    let enlarged = larger.narrow(2, 0, height)?.narrow(3, 0, width)?;
                    x = convolution.forward(&enlarged, call.context)?;
                }
                Ok::<_, Error>(vec![x])
            })?;
        }
        Ok(x)
    }
}

/// The only one of `tensors`.
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

/// A tensor that is kept for the way up.
#[derive(Clone, Copy)]
struct Skip {
    /// Index of the block that makes it.
    block: usize,
    channels: usize,
    rows: Rows,
}

/// The activations that are kept.
fn kept(skips: &[Skip]) -> impl Iterator<Item = (Rows, usize)> {
    skips.iter().map(|skip| (skip.rows, skip.channels))
}

/// `UNet2DConditionModel` or `UNet2DModel`.
pub struct Unet {
    placement: Placement,
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
    pub fn new(config: &UnetConfig, site: &Site<'_>) -> Result<Self> {
        let embedder = |name, inputs| Embedder::new(inputs, config.time, &site.at(name));
        let time_embedding = embedder("time_embedding", config.time_proj.channels)?;
        let addition = |addition: Addition| embedder("add_embedding", addition.inputs);
        let add_embedding = config.addition.map(addition).transpose()?;
        let latents = Rows::Pixels(0);
        let mut width = config.down[0].channels;
        let conv_in =
            site.over(latents).at("conv_in").convolution((config.in_channels, width), 3)?;
        let resnet = |inputs, outputs, site: Site<'_>| {
            ResnetBlock::new(inputs, outputs, Some(config.time), config.norm, &site)
        };
        let mut rows = latents;
        let mut skips = vec![Skip { block: 0, channels: width, rows }];
        let mut down_blocks = Vec::new();
        for (index, level) in config.down.iter().enumerate() {
            let unit = site.over(rows).at("down_blocks").at(index);
            down_blocks.push(unit.unit(|unit| {
                let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
                for layer in 0..level.layers {
                    let unit = unit.beside(kept(&skips));
                    unit.at("resnets").at(layer).branch(|site| {
                        resnets.push(resnet(width, level.channels, site.block(&[]))?);
                        let site = unit.at("attentions").at(layer);
                        attentions.push(BlockAttention::new(config, *level, &site)?);
                        Ok(())
                    })?;
                    width = level.channels;
                    skips.push(Skip { block: unit.last_block(), channels: width, rows });
                }
                let resample = |site: &Site<'_>| {
                    let site = site.block(&[]).at("conv");
                    site.strided((width, width), 3, 2, config.downsample_padding)
                };
                let resample = match index + 1 < config.down.len() {
                    true => Some(unit.at("downsamplers.0").branch(resample)?),
                    false => None,
                };
                let resample = resample.map(|(convolution, below)| {
                    rows = below;
                    skips.push(Skip { block: unit.last_block(), channels: width, rows });
                    convolution
                });
                Ok(UnetBlock { resnets, attentions, resample })
            })?);
        }
        let unit = site.over(rows).beside(kept(&skips)).at("mid_block");
        let middle = |site: &Site<'_>| {
            Ok(MidBlock {
                first: resnet(width, width, site.at("resnets.0").block(&[]))?,
                attention: BlockAttention::new(config, config.middle, &site.at("attentions.0"))?,
                second: resnet(width, width, site.at("resnets.1").block(&[]))?,
            })
        };
        let mid_block = unit.unit(|site| site.branch(middle))?;
        let mut up_blocks = Vec::new();
        for (index, level) in config.up.iter().enumerate() {
            let unit = site.over(rows).at("up_blocks").at(index);
            up_blocks.push(unit.unit(|unit| {
                let (mut resnets, mut attentions) = (Vec::new(), Vec::new());
                let mut resample = None;
                for layer in 0..level.layers {
                    let skip = skips.pop();
                    let more = skip.map_or(0, |skip| skip.channels);
                    let also: Vec<usize> = skip.iter().map(|skip| skip.block).collect();
                    let unit = unit.beside(kept(&skips));
                    unit.at("resnets").at(layer).branch(|site| {
                        resnets.push(resnet(width + more, level.channels, site.block(&also))?);
                        let site = unit.at("attentions").at(layer);
                        attentions.push(BlockAttention::new(config, *level, &site)?);
                        width = level.channels;
                        if layer + 1 == level.layers && index + 1 < config.up.len() {
                            rows = skips.last().map_or(rows, |skip| skip.rows);
                            let site = unit.over(rows).at("upsamplers.0").block(&[]);
                            // What is enlarged, and the convolution's input and output.
                            site.alive([(rows, 3 * width)]);
                            resample = Some(site.at("conv").convolution((width, width), 3)?);
                        }
                        Ok(())
                    })?;
                }
                Ok(UnetBlock { resnets, attentions, resample })
            })?);
        }
        let conv_norm_out = config.norm.over(width, &site.at("conv_norm_out"))?;
        let output = site.over(rows).output();
        Ok(Self {
            conv_in,
            time_embedding,
            add_embedding,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out,
            placement: site.placement().clone(),
            conv_out: output.at("conv_out").convolution((width, config.out_channels), 3)?,
            config: config.clone(),
        })
    }

    /// SiLU of the embedding of the time, plus that of SDXL's sizes and pooled text.
    fn time(
        &self,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let mut time = self
            .time_embedding
            .forward(&self.config.time_proj.of(timesteps, &self.placement)?, context)?;
        if let (Some(embedding), Some(addition)) = (&self.add_embedding, self.config.addition) {
            let (pooled, time_ids) = (conditioning.pooled()?, conditioning.time_ids()?);
            let (samples, count) = time_ids.dims2()?;
            let ids = addition
                .time_proj
                .of(time_ids, &self.placement)?
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
        timesteps: &Tensor,
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let time = self.time(timesteps, conditioning, context)?;
        let call = Call { time: &time, conditioning, context };
        let mut x = self.conv_in.forward(latents, context)?;
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
        Ok(self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?, context)?)
    }
}
