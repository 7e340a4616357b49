//! The kinds of single files, as data: how they are recognised, and which component is where.

use super::source::Source;
use super::{Parameters, clip, flux, mmdit, open_clip, unet, vae};
use crate::checkpoint::TensorFile;
use crate::clip::{ClipTextConfig, PROJECTED};
use crate::edits::Removals;
use crate::error::Result;
use crate::folder::{class_of, denoiser_of};
use crate::pipeline::class::PipelineClass;
use crate::t5::T5Config;
use crate::vae::AutoencoderKlConfig;
use serde_json::{Map, Value};
use std::path::Path;

/// A kind of model that comes in one file.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// The class that its model folders have.
    pub(super) pipeline: &'static str,
    /// A tensor of the denoiser that no kind before this one has.
    mark: &'static str,
    /// Of the pieces of one component, the first that is there counts.
    pieces: &'static [Piece],
}

/// The weights of a component, where they may be.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) component: &'static str,
    pub(super) prefix: &'static str,
    pub(super) naming: Naming,
}

/// How the original code calls the parameters of a component.
#[derive(Clone, Copy, Debug)]
pub(super) enum Naming {
    Unet,
    Mmdit,
    Flux,
    Vae,
    Clip,
    /// CLIP without a projection, where diffusers wants one.
    ClipUnprojected,
    OpenClip,
    T5,
}

const fn piece(component: &'static str, prefix: &'static str, naming: Naming) -> Piece {
    Piece { component, prefix, naming }
}

/// Where a denoiser is: in a checkpoint of the whole pipeline, or alone.
const DENOISER: [&str; 2] = ["model.diffusion_model.", ""];

static KINDS: [Kind; 4] = [
    Kind {
        name: "Stable Diffusion XL",
        pipeline: "StableDiffusionXLPipeline",
        mark: "label_emb.0.0.weight",
        pieces: &[
            piece("unet", DENOISER[0], Naming::Unet),
            piece("unet", DENOISER[1], Naming::Unet),
            piece("vae", "first_stage_model.", Naming::Vae),
            piece("text_encoder", "conditioner.embedders.0.transformer.", Naming::Clip),
            piece("text_encoder_2", "conditioner.embedders.1.model.", Naming::OpenClip),
        ],
    },
    Kind {
        name: "Stable Diffusion 1 or 2",
        pipeline: "StableDiffusionPipeline",
        mark: "input_blocks.0.0.weight",
        pieces: &[
            piece("unet", DENOISER[0], Naming::Unet),
            piece("unet", DENOISER[1], Naming::Unet),
            piece("vae", "first_stage_model.", Naming::Vae),
            piece("text_encoder", "cond_stage_model.transformer.", Naming::Clip),
            piece("text_encoder", "cond_stage_model.model.", Naming::OpenClip),
        ],
    },
    Kind {
        name: "Stable Diffusion 3",
        pipeline: "StableDiffusion3Pipeline",
        mark: "joint_blocks.0.x_block.attn.qkv.weight",
        pieces: &[
            piece("transformer", DENOISER[0], Naming::Mmdit),
            piece("transformer", DENOISER[1], Naming::Mmdit),
            piece("vae", "first_stage_model.", Naming::Vae),
            piece("text_encoder", "text_encoders.clip_l.transformer.", Naming::ClipUnprojected),
            piece("text_encoder_2", "text_encoders.clip_g.transformer.", Naming::Clip),
            piece("text_encoder_3", "text_encoders.t5xxl.transformer.", Naming::T5),
        ],
    },
    Kind {
        name: "FLUX",
        pipeline: "FluxPipeline",
        mark: "double_blocks.0.img_attn.qkv.weight",
        pieces: &[
            piece("transformer", DENOISER[0], Naming::Flux),
            piece("transformer", DENOISER[1], Naming::Flux),
            piece("vae", "first_stage_model.", Naming::Vae),
            piece("vae", "vae.", Naming::Vae),
            piece("text_encoder", "text_encoders.clip_l.transformer.", Naming::Clip),
            piece("text_encoder_2", "text_encoders.t5xxl.transformer.", Naming::T5),
        ],
    },
];

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

/// A tensor without numbers that says how the model was trained: an option of the scheduler, in JSON.
#[derive(Debug)]
pub(super) struct Marker {
    pub(super) tensor: &'static str,
    pub(super) option: &'static str,
    pub(super) value: &'static str,
}

static MARKERS: [Marker; 2] = [
    Marker { tensor: "v_pred", option: "prediction_type", value: "\"v_prediction\"" },
    Marker { tensor: "ztsnr", option: "rescale_betas_zero_snr", value: "true" },
];

impl Kind {
    /// The markers of a file; a flow's mean nothing.
    pub(super) fn markers(&self, file: &TensorFile) -> Vec<&'static Marker> {
        let is_unet = matches!(self.pieces[0].naming, Naming::Unet);
        MARKERS.iter().filter(|marker| is_unet && file.tensors.contains_key(marker.tensor)).collect()
    }

    /// The kind of a file.
    pub(super) fn of(file: &TensorFile) -> Option<&'static Self> {
        let has =
            |kind: &Kind| DENOISER.iter().any(|prefix| file.tensors.contains_key(&format!("{prefix}{}", kind.mark)));
        KINDS.iter().find(|kind| has(kind))
    }

    /// The names of all kinds.
    pub(super) fn names() -> Vec<&'static str> {
        KINDS.iter().map(|kind| kind.name).collect()
    }

    /// The pieces that a file of this kind holds, one a component.
    pub(super) fn pieces_of(&self, file: &TensorFile) -> Vec<&Piece> {
        let is_there = |piece: &&Piece| file.tensors.keys().any(|name| name.starts_with(piece.prefix));
        let mut pieces: Vec<&Piece> = self.pieces.iter().filter(is_there).collect();
        pieces.dedup_by_key(|piece| piece.component);
        pieces
    }
}

impl Piece {
    /// Where in the file the parameter `name` is, one of `parameters`. A name that the original code has no other for is
    /// expected as it is.
    pub(super) fn source(&self, name: &str, parameters: &Parameters, file: &TensorFile) -> Source {
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
    pub(super) fn unread(&self, parameters: &Parameters) -> Vec<String> {
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
    /// What the component `component` of the model folder `like` asks for.
    pub(super) fn parameters(
        self,
        component: &str,
        like: &Path,
        (class, index): (&PipelineClass, &Map<String, Value>),
    ) -> Result<Parameters> {
        let config = like.join(component).join("config.json");
        match self {
            Self::Unet | Self::Mmdit | Self::Flux => denoiser_of(class, like, index)?.parameters(&Removals::default()),
            Self::Vae => AutoencoderKlConfig::open(&config)?.parameters(),
            Self::Clip | Self::ClipUnprojected | Self::OpenClip => {
                ClipTextConfig::open(&config)?.parameters(class_of(index, component) == Some(PROJECTED))
            }
            Self::T5 => T5Config::open(&config)?.parameters(),
        }
    }
}

/// Whether a tensor is one that the original code stores beside the weights: what it computes a schedule from, weights
/// averaged in training, and what only training needs.
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
