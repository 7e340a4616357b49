//! Layers under their checkpoint names, and the probe that watches their inputs.
//!
//! A layer knows its name in the checkpoint and how to multiply; nothing of diffusion, files or
//! compression. [`Parameters`] are the named tensors of one component; a model is built from them
//! through a [`Scope`], which gathers everything that does not fit into one error.

// In the order in which data passes them: a module imports only from those above it.
mod name;
mod error;
mod devices;
#[cfg(feature = "cuda")]
mod upload;
mod placement;
mod context;
mod weights;
pub mod ops;
mod layers;

pub use context::{Context, Gates, Passage, Probe, Step};
pub use devices::{DeviceChoice, DeviceMemory, description, devices, to_device, unusable_gpu};
pub use error::{Error, Result};
pub use layers::{Conv2d, Embedding, GroupNorm, LayerNorm, Linear, RmsNorm};
pub use name::LayerName;
pub use placement::Placement;
pub use secateur_kernels::Activation;
pub use weights::{Fit, Kind, Mismatch, Parameters, Scope, Stream, Wanted, Weight};
