//! Diffusion model families in the diffusers layout: open, generate, describe, save.
//!
//! A family is a forward and a description of itself ([`Structure`]); it knows nothing of compression.

mod autoencoder;
mod blocks;
mod checkpoint;
mod clip;
mod conditioning;
mod dit;
mod edits;
mod error;
mod family;
pub mod files;
mod flux;
mod folder;
mod joint;
mod manifest;
mod mmdit;
mod modulation;
mod noise;
mod observer;
mod options;
mod patches;
mod pipeline;
mod pixart;
mod preprocess;
mod prompts;
mod reuse;
mod save;
mod scheduler;
mod single_file;
mod structure;
mod t5;
mod tokenizer;
mod unet;
mod vae;
mod vae_tiny;

pub use autoencoder::{Autoencoder, AutoencoderConfig, autoencoder_config};
pub use checkpoint::{Checkpoint, TensorInfo};
pub use clip::{ClipModel, ClipTextConfig, ClipTextModel, ClipTextOutput};
pub use conditioning::Conditioning;
pub use dit::{Dit, DitConfig};
pub use edits::{Cuts, Edits, Removal, Removals};
pub use error::{Error, Result};
pub use family::{Denoiser, DenoiserConfig, denoiser_config};
pub use files::{OutputFolder, OutputOptions};
pub use flux::{Flux, FluxConfig};
pub use folder::{Captions, Labels, ModelFolder};
pub use manifest::{ChangedShape, Generation, Manifest, Prompts};
pub use mmdit::{Mmdit, MmditConfig};
pub use noise::noise;
pub use observer::Observer;
pub use pipeline::class::Subject;
pub use pipeline::{Denoising, Pipeline, Sampling};
pub use pixart::{Pixart, PixartConfig};
pub use preprocess::ClipImageProcessor;
pub use prompts::read_prompts;
pub use reuse::{Kind, Made, Past, Reuse, ReuseSchedule};
pub use save::cast;
pub use scheduler::{Call, Instead, Run, Sampler, Schedule, SchedulerConfig, scheduler_config};
pub use secateur_nn::LayerName;
pub use single_file::{Conversion, SingleFile};
pub use structure::{
    Axis, Between, Block, DimensionGroup, Geometry, Group, HeadGroup, HeadStream, Layer, Memory, NeuronGroup,
    Operation, Pair, Part, Prunable, Reader, Slice, Structure, Unit, UnitKind,
};
pub use t5::{T5Config, T5Encoder};
pub use tokenizer::{ClipTokenizer, T5Tokenizer};
pub use unet::{Unet, UnetConfig};
pub use vae::{AutoencoderKl, AutoencoderKlConfig};
pub use vae_tiny::{AutoencoderTiny, AutoencoderTinyConfig};
