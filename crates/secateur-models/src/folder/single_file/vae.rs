//! The autoencoder (`convert_ldm_vae_checkpoint`): levels are counted from the highest resolution
//! on both sides.

use crate::folder::single_file::source::Excerpt::Whole;
use crate::folder::single_file::source::{Line, Parameters, Source, numbered};
const LAYERS: [Line; 6] = [
    ("conv_norm_out", "norm_out", Whole),
    ("mid_block.attentions.0.group_norm", "mid.attn_1.norm", Whole),
    ("mid_block.attentions.0.to_q", "mid.attn_1.q", Whole),
    ("mid_block.attentions.0.to_k", "mid.attn_1.k", Whole),
    ("mid_block.attentions.0.to_v", "mid.attn_1.v", Whole),
    ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out", Whole),
];

const LEVEL: [Line; 2] = [
    ("downsamplers.0.conv", "downsample.conv", Whole),
    ("upsamplers.0.conv", "upsample.conv", Whole),
];

pub(crate) fn source(name: &str, parameters: &Parameters) -> Option<Source> {
    let (side, rest) = name.split_once('.')?;
    let source = level(rest, parameters)
        .or_else(|| middle(rest))
        .or_else(|| Source::look_up(rest, &LAYERS))?;
    Some(source.below(format_args!("{side}.")))
}

fn level(name: &str, parameters: &Parameters) -> Option<Source> {
    let (side, level, rest) =
        match (name.strip_prefix("down_blocks."), name.strip_prefix("up_blocks.")) {
            (Some(name), _) => numbered(name).map(|(level, rest)| ("down", level, rest)),
            (_, Some(name)) => {
                numbered(name).map(|(level, rest)| ("up", (levels(parameters) - 1) - level, rest))
            }
            (None, None) => None,
        }?;
    let source = match rest.strip_prefix("resnets.") {
        Some(rest) => resnet(rest).below("block."),
        None => Source::look_up(rest, &LEVEL)?,
    };
    Some(source.below(format_args!("{side}.{level}.")))
}

fn middle(name: &str) -> Option<Source> {
    let (index, rest) = numbered(name.strip_prefix("mid_block.resnets.")?)?;
    Some(resnet(rest).below(format_args!("mid.block_{}.", index + 1)))
}

fn resnet(name: &str) -> Source {
    Source::whole(name.replace("conv_shortcut", "nin_shortcut"))
}

/// The levels of the decoder.
fn levels(parameters: &Parameters) -> usize {
    let is_there = |level: &usize| {
        parameters.contains_key(&format!("decoder.up_blocks.{level}.resnets.0.norm1.weight"))
    };
    (0..).take_while(is_there).count()
}
