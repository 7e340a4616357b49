//! CLIP under the names of OpenCLIP (`convert_open_clip_checkpoint`).

use crate::folder::single_file::source::Excerpt::{Rows, Transposed, Whole};
use crate::folder::single_file::source::{Line, Parameters, Source, numbered};
const OTHERS: [Line; 4] = [
    ("text_model.embeddings.position_embedding.weight", "positional_embedding", Whole),
    ("text_model.embeddings.token_embedding", "token_embedding", Whole),
    ("text_model.final_layer_norm", "ln_final", Whole),
    ("text_projection.weight", "text_projection", Transposed),
];

const LAYER: [Line; 11] = [
    ("layer_norm1", "ln_1", Whole),
    ("layer_norm2", "ln_2", Whole),
    ("self_attn.q_proj.weight", "attn.in_proj_weight", Rows(0)),
    ("self_attn.k_proj.weight", "attn.in_proj_weight", Rows(1)),
    ("self_attn.v_proj.weight", "attn.in_proj_weight", Rows(2)),
    ("self_attn.q_proj.bias", "attn.in_proj_bias", Rows(0)),
    ("self_attn.k_proj.bias", "attn.in_proj_bias", Rows(1)),
    ("self_attn.v_proj.bias", "attn.in_proj_bias", Rows(2)),
    ("self_attn.out_proj", "attn.out_proj", Whole),
    ("mlp.fc1", "mlp.c_fc", Whole),
    ("mlp.fc2", "mlp.c_proj", Whole),
];

const LAYERS: &str = "text_model.encoder.layers.";

pub(crate) fn source(name: &str) -> Option<Source> {
    let Some((layer, rest)) = name.strip_prefix(LAYERS).and_then(numbered) else {
        return Source::look_up(name, &OTHERS);
    };
    Some(Source::look_up(rest, &LAYER)?.below(format_args!("transformer.resblocks.{layer}.")))
}

/// SD2 reads the states before the last layer, so diffusers' encoder has one layer less, and no
/// projection.
pub(crate) fn unread(parameters: &Parameters) -> Vec<String> {
    let is_there =
        |layer: &usize| parameters.contains_key(&format!("{LAYERS}{layer}.layer_norm1.weight"));
    let layers = (0..).take_while(is_there).count();
    vec!["text_projection".into(), format!("transformer.resblocks.{layers}.")]
}
