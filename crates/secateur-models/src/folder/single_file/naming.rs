//! Parameters of diffusers under the names of the original code.

use crate::autoencoders::AutoencoderKlConfig;
use crate::classes::{PipelineClass, class_of};
use crate::encoders::{ClipTextConfig, PROJECTED, T5Config};
use crate::error::Result;
use crate::files::single_file::MARKERS;
use crate::files::{Naming, Piece, TensorFile};
use crate::folder::index::denoiser_of;
use crate::folder::single_file::source::{Parameters, Source};
use crate::folder::single_file::{clip, flux, mmdit, open_clip, unet, vae};
use crate::structure::Removals;
use serde_json::{Map, Value};
use std::path::Path;

/// Parts of names that some files have others for.
const OTHER_NAMES: [(&str, &str); 6] = [
    (".mid.attn_1.q.", ".mid.attn_1.to_q."),
    (".mid.attn_1.k.", ".mid.attn_1.to_k."),
    (".mid.attn_1.v.", ".mid.attn_1.to_v."),
    (".mid.attn_1.proj_out.", ".mid.attn_1.to_out.0."),
    // FLUX's.
    ("_norm.scale", "_norm.weight"),
    // T5's table, which is that of the encoder too.
    (".shared.", ".encoder.embed_tokens."),
];

impl Piece {
    /// Where in the file the parameter `name` is, one of `parameters`. A name that the original
    /// code has no other for is expected as it is.
    pub(crate) fn source(&self, name: &str, parameters: &Parameters, file: &TensorFile) -> Source {
        let has = |name: &str| file.tensors.contains_key(&format!("{}{name}", self.prefix));
        let source = match self.naming {
            Naming::Unet => unet::source(name, parameters),
            Naming::Mmdit => mmdit::source(name, parameters),
            Naming::Flux => flux::source(name),
            Naming::Vae => vae::source(name, parameters),
            Naming::Clip => clip::source(name, has),
            Naming::ClipUnprojected => clip::unprojected(name, has),
            Naming::OpenClip => open_clip::source(name),
            Naming::T5 => None,
        };
        let source = source.unwrap_or_else(|| Source::whole(name)).below(self.prefix);
        let mut others = OTHER_NAMES.iter().map(|(name, other)| source.name.replace(name, other));
        match file.tensors.contains_key(&source.name) {
            true => source,
            false => match others.find(|name| file.tensors.contains_key(name)) {
                Some(name) => Source { name, ..source },
                None => source,
            },
        }
    }

    /// How the names of tensors begin that may be in the file without being one of `parameters`.
    pub(crate) fn unread(&self, parameters: &Parameters) -> Vec<String> {
        let names = match self.naming {
            Naming::Unet | Naming::Mmdit | Naming::Flux | Naming::Vae => Vec::new(),
            // A text encoder may have a projection that the pipeline does not use.
            Naming::Clip | Naming::ClipUnprojected => vec!["text_projection".into()],
            Naming::OpenClip => open_clip::unread(parameters),
            // The same table as `shared`.
            Naming::T5 => vec!["encoder.embed_tokens.".into()],
        };
        names.into_iter().map(|name: String| format!("{}{name}", self.prefix)).collect()
    }
}

impl Naming {
    /// The parameters that the component `component` of the model folder `like` takes.
    pub(crate) fn parameters(
        self,
        component: &str,
        like: &Path,
        (class, index): (&PipelineClass, &Map<String, Value>),
    ) -> Result<Parameters> {
        let config = like.join(component).join("config.json");
        match self {
            Self::Unet | Self::Mmdit | Self::Flux => {
                denoiser_of(class, like, index)?.parameters(&Removals::default())
            }
            Self::Vae => AutoencoderKlConfig::open(&config)?.parameters(),
            Self::Clip | Self::ClipUnprojected | Self::OpenClip => ClipTextConfig::open(&config)?
                .parameters(class_of(index, component) == Some(PROJECTED)),
            Self::T5 => T5Config::open(&config)?.parameters(),
        }
    }
}

/// Whether a tensor is one that the original code stores beside the weights: what it computes a
/// schedule from, weights averaged in training, and what only training needs.
pub(super) fn is_no_weight(name: &str) -> bool {
    const STORED: [&str; 15] = [
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "betas",
        "denoiser.sigmas",
        "log_one_minus_alphas_cumprod",
        "logvar",
        "lvlb_weights",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "posterior_variance",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
    ];
    STORED.contains(&name)
        || MARKERS.iter().any(|marker| marker.tensor == name)
        || name.starts_with("model_ema.")
        || name.ends_with(".position_ids")
        || name.ends_with(".logit_scale")
}
