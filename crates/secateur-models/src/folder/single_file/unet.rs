//! The UNet of Stable Diffusion (`convert_ldm_unet_checkpoint`): blocks are counted through all
//! levels.

use crate::folder::single_file::source::Excerpt::Whole;
use crate::folder::single_file::source::{Line, Parameters, Source, numbered};
const OTHERS: [Line; 7] = [
    ("time_embedding.linear_1", "time_embed.0", Whole),
    ("time_embedding.linear_2", "time_embed.2", Whole),
    ("add_embedding.linear_1", "label_emb.0.0", Whole),
    ("add_embedding.linear_2", "label_emb.0.2", Whole),
    ("conv_in", "input_blocks.0.0", Whole),
    ("conv_norm_out", "out.0", Whole),
    ("conv_out", "out.2", Whole),
];

const RESNET: [Line; 6] = [
    ("norm1", "in_layers.0", Whole),
    ("conv1", "in_layers.2", Whole),
    ("time_emb_proj", "emb_layers.1", Whole),
    ("norm2", "out_layers.0", Whole),
    ("conv2", "out_layers.3", Whole),
    ("conv_shortcut", "skip_connection", Whole),
];

pub(crate) fn source(name: &str, parameters: &Parameters) -> Option<Source> {
    let look_up = || Source::look_up(name, &OTHERS);
    down(name, parameters)
        .or_else(|| middle(name))
        .or_else(|| up(name, parameters))
        .or_else(look_up)
}

/// A block for each residual block, and one for each change of resolution.
fn down(name: &str, parameters: &Parameters) -> Option<Source> {
    let (level, rest) = numbered(name.strip_prefix("down_blocks.")?)?;
    let layers = |level: usize| layers("down_blocks", level, parameters);
    let first = 1 + (0..level).map(|level| layers(level) + 1).sum::<usize>();
    if let Some(rest) = rest.strip_prefix("downsamplers.0.conv.") {
        return Some(Source::whole(format!("input_blocks.{}.0.op.{rest}", first + layers(level))));
    }
    let (layer, source) = layer(rest)?;
    Some(source.below(format_args!("input_blocks.{}.", first + layer)))
}

fn middle(name: &str) -> Option<Source> {
    let rest = name.strip_prefix("mid_block.")?;
    if let Some((index, rest)) = rest.strip_prefix("attentions.").and_then(numbered) {
        return Some(Source::whole(format!("middle_block.{}.{rest}", 2 * index + 1)));
    }
    let (index, rest) = numbered(rest.strip_prefix("resnets.")?)?;
    Some(Source::look_up(rest, &RESNET)?.below(format_args!("middle_block.{}.", 2 * index)))
}

/// A block for each residual block. The last one changes the resolution too.
fn up(name: &str, parameters: &Parameters) -> Option<Source> {
    let (level, rest) = numbered(name.strip_prefix("up_blocks.")?)?;
    let layers = |level: usize| layers("up_blocks", level, parameters);
    let first: usize = (0..level).map(layers).sum();
    if let Some(rest) = rest.strip_prefix("upsamplers.0.conv.") {
        let attends =
            parameters.contains_key(&format!("up_blocks.{level}.attentions.0.norm.weight"));
        let (last, place) = (first + layers(level) - 1, if attends { 2 } else { 1 });
        return Some(Source::whole(format!("output_blocks.{last}.{place}.conv.{rest}")));
    }
    let (layer, source) = layer(rest)?;
    Some(source.below(format_args!("output_blocks.{}.", first + layer)))
}

/// The number of a residual block or of the attention behind it, and its place in a block.
fn layer(name: &str) -> Option<(usize, Source)> {
    if let Some((index, rest)) = name.strip_prefix("attentions.").and_then(numbered) {
        return Some((index, Source::whole(format!("1.{rest}"))));
    }
    let (index, rest) = numbered(name.strip_prefix("resnets.")?)?;
    Some((index, Source::look_up(rest, &RESNET)?.below("0.")))
}

/// The residual blocks of a level.
fn layers(side: &str, level: usize, parameters: &Parameters) -> usize {
    let is_there = |index: &usize| {
        parameters.contains_key(&format!("{side}.{level}.resnets.{index}.norm1.weight"))
    };
    (0..).take_while(is_there).count()
}
