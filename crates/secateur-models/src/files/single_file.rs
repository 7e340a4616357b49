//! Checkpoints in one file, as ComfyUI and A1111 read them: the supported kinds.

use crate::error::{Result, invalid};
use crate::files::checkpoint::TensorFile;
use std::path::Path;

/// A checkpoint in one file, of a supported kind.
#[derive(Debug)]
pub struct SingleFile {
    pub(crate) file: TensorFile,
    pub(crate) kind: &'static Kind,
}

impl SingleFile {
    /// Opens a file, and reads its header.
    ///
    /// # Errors
    /// If it is not a safetensors file, is damaged, or is of no supported kind.
    pub fn open(path: &Path) -> Result<Self> {
        let file = TensorFile::open(path)?;
        match Kind::of(&file) {
            Some(kind) => Ok(Self { file, kind }),
            None => {
                let some: Vec<&str> = file.tensors.keys().take(3).map(String::as_str).collect();
                let (count, some, known) =
                    (file.tensors.len(), some.join(", "), Kind::names().join(", "));
                invalid!(
                    path,
                    "{count} tensors ({some}, ...), not a checkpoint of a kind that is known: \
                     {known}"
                )
            }
        }
    }

    /// The kind of model.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind.name
    }
}

/// A kind of model that comes in one file.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// The pipeline class of its model folders.
    pub(crate) pipeline: &'static str,
    /// A tensor of the denoiser that no kind before this one has.
    mark: &'static str,
    /// The pieces of the file. Of those for one component, the first that exists counts.
    pieces: &'static [Piece],
}

/// The weights of a component, where they may be.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) component: &'static str,
    pub(crate) prefix: &'static str,
    pub(crate) naming: Naming,
}

/// How the original code calls the parameters of a component.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Naming {
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

/// A tensor without numbers that says how the model was trained: an option of the scheduler, in
/// JSON.
#[derive(Debug)]
pub(crate) struct Marker {
    pub(crate) tensor: &'static str,
    pub(crate) option: &'static str,
    pub(crate) value: &'static str,
}

pub(crate) static MARKERS: [Marker; 2] = [
    Marker { tensor: "v_pred", option: "prediction_type", value: "\"v_prediction\"" },
    Marker { tensor: "ztsnr", option: "rescale_betas_zero_snr", value: "true" },
];

impl Kind {
    /// The markers of a file; a flow's mean nothing.
    pub(crate) fn markers(&self, file: &TensorFile) -> Vec<&'static Marker> {
        let is_unet = matches!(self.pieces[0].naming, Naming::Unet);
        MARKERS
            .iter()
            .filter(|marker| is_unet && file.tensors.contains_key(marker.tensor))
            .collect()
    }

    /// The kind of a file.
    pub(crate) fn of(file: &TensorFile) -> Option<&'static Self> {
        let has = |kind: &Kind| {
            DENOISER
                .iter()
                .any(|prefix| file.tensors.contains_key(&format!("{prefix}{}", kind.mark)))
        };
        KINDS.iter().find(|kind| has(kind))
    }

    /// The names of all kinds.
    pub(crate) fn names() -> Vec<&'static str> {
        KINDS.iter().map(|kind| kind.name).collect()
    }

    /// The pieces that a file of this kind holds, one a component.
    pub(crate) fn pieces_of(&self, file: &TensorFile) -> Vec<&Piece> {
        let is_there =
            |piece: &&Piece| file.tensors.keys().any(|name| name.starts_with(piece.prefix));
        let mut pieces: Vec<&Piece> = self.pieces.iter().filter(is_there).collect();
        pieces.dedup_by_key(|piece| piece.component);
        pieces
    }
}
