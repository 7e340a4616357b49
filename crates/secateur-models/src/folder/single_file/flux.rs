//! The transformer of FLUX (`convert_flux_transformer_checkpoint_to_diffusers`).

use crate::folder::single_file::source::Excerpt::{LastRows, Rows, Swapped, Whole};
use crate::folder::single_file::source::{Line, Source, numbered};
const OTHERS: [Line; 10] = [
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer", Whole),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer", Whole),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer", Whole),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer", Whole),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer", Whole),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer", Whole),
    ("context_embedder", "txt_in", Whole),
    ("x_embedder", "img_in", Whole),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", Swapped),
    ("proj_out", "final_layer.linear", Whole),
];

const DOUBLE: [Line; 18] = [
    ("norm1.linear", "img_mod.lin", Whole),
    ("norm1_context.linear", "txt_mod.lin", Whole),
    ("attn.to_q", "img_attn.qkv", Rows(0)),
    ("attn.to_k", "img_attn.qkv", Rows(1)),
    ("attn.to_v", "img_attn.qkv", Rows(2)),
    ("attn.add_q_proj", "txt_attn.qkv", Rows(0)),
    ("attn.add_k_proj", "txt_attn.qkv", Rows(1)),
    ("attn.add_v_proj", "txt_attn.qkv", Rows(2)),
    ("attn.norm_q.weight", "img_attn.norm.query_norm.scale", Whole),
    ("attn.norm_k.weight", "img_attn.norm.key_norm.scale", Whole),
    ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale", Whole),
    ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale", Whole),
    ("attn.to_out.0", "img_attn.proj", Whole),
    ("attn.to_add_out", "txt_attn.proj", Whole),
    ("ff.net.0.proj", "img_mlp.0", Whole),
    ("ff.net.2", "img_mlp.2", Whole),
    ("ff_context.net.0.proj", "txt_mlp.0", Whole),
    ("ff_context.net.2", "txt_mlp.2", Whole),
];

const SINGLE: [Line; 8] = [
    ("norm.linear", "modulation.lin", Whole),
    ("attn.to_q", "linear1", Rows(0)),
    ("attn.to_k", "linear1", Rows(1)),
    ("attn.to_v", "linear1", Rows(2)),
    ("proj_mlp", "linear1", LastRows),
    ("attn.norm_q.weight", "norm.query_norm.scale", Whole),
    ("attn.norm_k.weight", "norm.key_norm.scale", Whole),
    ("proj_out", "linear2", Whole),
];

pub(crate) fn source(name: &str) -> Option<Source> {
    if let Some((block, rest)) = name.strip_prefix("transformer_blocks.").and_then(numbered) {
        return Some(Source::look_up(rest, &DOUBLE)?.below(format_args!("double_blocks.{block}.")));
    }
    if let Some((block, rest)) = name.strip_prefix("single_transformer_blocks.").and_then(numbered)
    {
        return Some(Source::look_up(rest, &SINGLE)?.below(format_args!("single_blocks.{block}.")));
    }
    Source::look_up(name, &OTHERS)
}
