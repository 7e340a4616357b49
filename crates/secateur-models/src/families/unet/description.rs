//! What a UNet tells the methods about itself.

use crate::families::unet::config::{Level, LevelAttention, UnetConfig};
use crate::layers::{Gate, embedder_layers};
use crate::structure::{Block, Geometry, Layer, Structure, Unit};
use secateur_nn::LayerName;

/// The description of a UNet of that configuration.
pub(crate) fn describe(config: &UnetConfig, geometry: &Geometry) -> Structure {
    Description::new(config, geometry.text).describe(geometry.latent)
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
        Self {
            config,
            text,
            structure: Structure::default(),
            last: 0,
            first_of_text: None,
            kept: 0,
        }
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

    /// All blocks since there were `start`.
    fn since(&self, start: usize, name: impl Into<String>) -> Unit {
        Unit { name: name.into(), blocks: start..self.structure.blocks.len() }
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
            embedders =
                embedders.with(embedder_layers("add_embedding", 1, addition.inputs, config.time));
        }
        self.push(embedders.with([Layer::convolution(
            "conv_in",
            size,
            (config.in_channels, first),
            3,
        )]));
        let mut skips = Vec::new();
        self.keep(first, size, &mut skips);
        for (index, level) in config.down.iter().enumerate() {
            let prefix = format!("down_blocks.{index}");
            let start = self.structure.blocks.len();
            for layer in 0..level.layers {
                let start = self.structure.blocks.len();
                self.resnet(
                    &format!("{prefix}.resnets.{layer}"),
                    size,
                    width,
                    level.channels,
                    None,
                );
                self.attention(&format!("{prefix}.attentions.{layer}"), size, *level);
                width = level.channels;
                self.keep(width, size, &mut skips);
                self.structure
                    .branches
                    .push(self.since(start, format!("{prefix}.resnets.{layer}")));
            }
            if index + 1 < config.down.len() {
                let padding = config.downsample_padding.0 + config.downsample_padding.1;
                let half = |side: usize| (side + padding).saturating_sub(3) / 2 + 1;
                size = (half(size.0), half(size.1));
                let name = format!("{prefix}.downsamplers.0");
                let start = self.structure.blocks.len();
                let convolution =
                    Layer::convolution(&format!("{name}.conv"), size, (width, width), 3);
                self.push(Block::new(&name, &[self.last]).with([convolution]));
                self.keep(width, size, &mut skips);
                self.structure.branches.push(self.since(start, name));
            }
            self.structure.units.push(self.since(start, prefix));
        }
        let start = self.structure.blocks.len();
        self.resnet("mid_block.resnets.0", size, width, width, None);
        self.attention("mid_block.attentions.0", size, config.middle);
        self.resnet("mid_block.resnets.1", size, width, width, None);
        self.structure.branches.push(self.since(start, "mid_block"));
        self.structure.units.push(self.since(start, "mid_block"));
        for (index, level) in config.up.iter().enumerate() {
            let prefix = format!("up_blocks.{index}");
            let start = self.structure.blocks.len();
            for layer in 0..level.layers {
                let branch = self.structure.blocks.len();
                let skip = skips.pop();
                let more = skip.map_or(0, |skip| skip.channels);
                self.kept -= more * size.0 * size.1;
                self.resnet(
                    &format!("{prefix}.resnets.{layer}"),
                    size,
                    width + more,
                    level.channels,
                    skip,
                );
                self.attention(&format!("{prefix}.attentions.{layer}"), size, *level);
                width = level.channels;
                if let (true, true, Some(next)) =
                    (layer + 1 == level.layers, index + 1 < config.up.len(), skips.last())
                {
                    size = next.size;
                    self.reach(3 * width * size.0 * size.1);
                    let name = format!("{prefix}.upsamplers.0");
                    let convolution =
                        Layer::convolution(&format!("{name}.conv"), size, (width, width), 3);
                    self.push(Block::new(&name, &[self.last]).with([convolution]));
                }
                self.structure
                    .branches
                    .push(self.since(branch, format!("{prefix}.resnets.{layer}")));
            }
            self.structure.units.push(self.since(start, prefix));
        }
        let convolution = Layer::convolution("conv_out", size, (width, config.out_channels), 3);
        self.push(Block::new("output", &[self.last]).with([convolution]));
        self.structure
    }

    fn resnet(
        &mut self,
        name: &str,
        size: (usize, usize),
        inputs: usize,
        outputs: usize,
        skip: Option<Skip>,
    ) {
        let mut layers = vec![
            Layer::convolution(&format!("{name}.conv1"), size, (inputs, outputs), 3),
            Layer::linear(format!("{name}.time_emb_proj"), 1, self.config.time, outputs),
            Layer::convolution(&format!("{name}.conv2"), size, (outputs, outputs), 3),
        ];
        if inputs != outputs {
            layers.push(Layer::convolution(
                &format!("{name}.conv_shortcut"),
                size,
                (inputs, outputs),
                1,
            ));
        }
        // Input, its norm, the first convolution; or input, result, shortcut and their sum.
        self.reach((2 * inputs + outputs).max(inputs + 3 * outputs) * size.0 * size.1);
        let reads: Vec<usize> =
            [self.last].into_iter().chain(skip.map(|skip| skip.block)).collect();
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
                // In the feed-forward: pixels, tokens and their norm, both halves of the hidden
                // layer and their product.
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
                    block.attention(
                        &format!("{prefix}.attn1"),
                        pixels,
                        (pixels, width),
                        (heads, width),
                        None,
                    );
                    let attn2 = format!("{prefix}.attn2");
                    let text =
                        self.first_of_text.get_or_insert_with(|| format!("{attn2}.to_k").into());
                    block.attention(
                        &attn2,
                        pixels,
                        (self.text, self.config.text),
                        (heads, width),
                        Some(text),
                    );
                    block.feed_forward(&format!("{prefix}.ff"), pixels, width, Gate::Geglu);
                    self.push(block);
                }
                self.push(
                    Block::new(format!("{name}.proj_out"), &[self.last, around]).with([proj_out]),
                );
            }
        }
    }
}
