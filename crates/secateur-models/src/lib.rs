//! Diffusion model families in the diffusers layout: open, generate, describe, save.
//!
//! A family is a forward and a description of itself ([`Structure`]); it knows nothing of compression.

mod blocks;
mod checkpoint;
mod clip;
mod conditioning;
mod error;
mod family;
mod flux;
mod folder;
mod joint;
mod mmdit;
mod noise;
mod pipeline;
mod preprocess;
mod save;
mod scheduler;
mod structure;
mod tokenizer;
mod unet;
mod vae;

pub use checkpoint::{Checkpoint, TensorInfo};
pub use clip::{ClipModel, ClipTextConfig, ClipTextModel, ClipTextOutput};
pub use conditioning::{Conditioning, Multiplicity};
pub use error::{Error, Result};
pub use family::{Denoiser, DenoiserConfig, denoiser_config};
pub use flux::{Flux, FluxConfig};
pub use folder::{Generation, Manifest, ModelFolder, Prompts, read_prompts};
pub use mmdit::{Mmdit, MmditConfig};
pub use noise::noise;
pub use pipeline::{Observer, Pipeline, Sampling};
pub use preprocess::ClipImageProcessor;
pub use save::{OutputFolder, cast};
pub use scheduler::{Call, Run, Schedule, SchedulerConfig, scheduler_config};
pub use structure::{Block, Geometry, Layer, Memory, Operation, Prunable, Structure, UnitKind};
pub use tokenizer::ClipTokenizer;
pub use unet::{Unet, UnetConfig};
pub use vae::{AutoencoderKl, AutoencoderKlConfig};
