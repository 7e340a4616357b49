//! CLIP under the names of transformers (`convert_ldm_clip_checkpoint`), with `text_model` in front
//! or without.

use crate::folder::single_file::source::{Excerpt, Source};
pub(crate) fn source(name: &str, has: impl Fn(&str) -> bool) -> Option<Source> {
    let bare = name.strip_prefix("text_model.")?;
    (!has(name) && has(bare)).then(|| Source::whole(bare))
}

/// The same for SD3's CLIP-L, which pools without a projection: an identity in diffusers
/// (`create_diffusers_clip_model_from_ldm`).
pub(crate) fn unprojected(name: &str, has: impl Fn(&str) -> bool) -> Option<Source> {
    if name == "text_projection.weight" && !has(name) {
        let typed = "text_model.final_layer_norm.weight";
        let name = source(typed, has).map_or(typed.into(), |source| source.name);
        return Some(Source { name, part: Excerpt::Identity });
    }
    source(name, has)
}
