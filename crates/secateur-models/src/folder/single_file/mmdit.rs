//! The transformer of SD3 (`convert_sd3_transformer_checkpoint_to_diffusers`).

use crate::folder::single_file::source::Excerpt::{Rows, Swapped, Whole};
use crate::folder::single_file::source::{Line, Parameters, Source, numbered};
const OTHERS: [Line; 9] = [
    ("pos_embed.pos_embed", "pos_embed", Whole),
    ("pos_embed.proj", "x_embedder.proj", Whole),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0", Whole),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2", Whole),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0", Whole),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2", Whole),
    ("context_embedder", "context_embedder", Whole),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", Swapped),
    ("proj_out", "final_layer.linear", Whole),
];

const BLOCK: [Line; 24] = [
    ("norm1.linear", "x_block.adaLN_modulation.1", Whole),
    ("norm1_context.linear", "context_block.adaLN_modulation.1", Whole),
    ("attn.to_q", "x_block.attn.qkv", Rows(0)),
    ("attn.to_k", "x_block.attn.qkv", Rows(1)),
    ("attn.to_v", "x_block.attn.qkv", Rows(2)),
    ("attn.add_q_proj", "context_block.attn.qkv", Rows(0)),
    ("attn.add_k_proj", "context_block.attn.qkv", Rows(1)),
    ("attn.add_v_proj", "context_block.attn.qkv", Rows(2)),
    ("attn.norm_q", "x_block.attn.ln_q", Whole),
    ("attn.norm_k", "x_block.attn.ln_k", Whole),
    ("attn.norm_added_q", "context_block.attn.ln_q", Whole),
    ("attn.norm_added_k", "context_block.attn.ln_k", Whole),
    ("attn.to_out.0", "x_block.attn.proj", Whole),
    ("attn.to_add_out", "context_block.attn.proj", Whole),
    ("attn2.to_q", "x_block.attn2.qkv", Rows(0)),
    ("attn2.to_k", "x_block.attn2.qkv", Rows(1)),
    ("attn2.to_v", "x_block.attn2.qkv", Rows(2)),
    ("attn2.norm_q", "x_block.attn2.ln_q", Whole),
    ("attn2.norm_k", "x_block.attn2.ln_k", Whole),
    ("attn2.to_out.0", "x_block.attn2.proj", Whole),
    ("ff.net.0.proj", "x_block.mlp.fc1", Whole),
    ("ff.net.2", "x_block.mlp.fc2", Whole),
    ("ff_context.net.0.proj", "context_block.mlp.fc1", Whole),
    ("ff_context.net.2", "context_block.mlp.fc2", Whole),
];

pub(crate) fn source(name: &str, parameters: &Parameters) -> Option<Source> {
    let Some((block, rest)) = name.strip_prefix("transformer_blocks.").and_then(numbered) else {
        return Source::look_up(name, &OTHERS);
    };
    let mut source = Source::look_up(rest, &BLOCK)?;
    // The last block's text is only read: its norm has a scale and a shift, as the one at the end.
    let last =
        !parameters.contains_key(&format!("transformer_blocks.{block}.attn.to_add_out.weight"));
    if last && rest.starts_with("norm1_context.") {
        source.part = Swapped;
    }
    Some(source.below(format_args!("joint_blocks.{block}.")))
}
