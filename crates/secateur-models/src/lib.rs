//! Diffusion model families in the diffusers layout: open, generate, describe, save.
//!
//! A family is a set of constructors, which record the model's [`Structure`], and a forward pass.
//! It knows nothing of compression.

// In the order in which data passes them: a module imports only from those above it.
mod error;
mod observer;
pub mod files;
mod structure;
mod conditioning;
mod layers;
mod encoders;
mod autoencoders;
mod families;
mod samplers;
mod reuse;
mod classes;
mod folder;
mod pipeline;

pub use autoencoders::{
    Autoencoder, AutoencoderConfig, AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny,
    AutoencoderTinyConfig, autoencoder_config,
};
pub use classes::{Generation, Labels, Sampling, Subject};
pub use conditioning::Conditioning;
pub use encoders::{
    ClipImageProcessor, ClipModel, ClipTextConfig, ClipTextModel, ClipTextOutput, ClipTokenizer,
    T5Config, T5Encoder, T5Tokenizer,
};
pub use error::{Error, Result};
pub use families::{
    Denoiser, DenoiserConfig, Dit, DitConfig, Flux, FluxConfig, Mmdit, MmditConfig, Pixart,
    PixartConfig, Unet, UnetConfig, denoiser_config,
};
pub use files::{Checkpoint, OutputFolder, OutputOptions, SingleFile, TensorInfo, read_prompts};
pub use folder::{Captions, ChangedShape, Conversion, Manifest, ModelFolder, Prompts, WeightBytes};
pub use observer::Observer;
pub use pipeline::{Denoising, Halfway, Pipeline, noise};
pub use reuse::{Made, Past, Reuse, ReuseSchedule};
pub use samplers::{Call, Instead, Run, Sampler, Schedule, SchedulerConfig, scheduler_config};
pub use secateur_nn::LayerName;
pub use structure::{
    Axis, Between, Block, Cuts, Description, DimensionGroup, Edits, Geometry, Group, HeadGroup,
    HeadStream, Layer, Memory, NeuronGroup, Operation, Pair, Part, Prunable, Reader, Removal,
    Removals, Role, Site, Slice, Structure, Unit, UnitKind,
};
