//! Makes a diffusion model smaller and faster, and measures the cost. Every command of the program
//! is a function of its settings.
//!
//! A [`Recipe`] lists the methods to apply to a model. [`plan`] estimates the time and memory, and
//! [`run`] makes the new model. Progress goes to an [`Observer`], which can stop the work.

// In the order in which data passes them: a module imports only from those above it.
mod error;
pub mod format;
mod memory;
mod profile;
mod machine;
mod estimate;
mod footprint;
mod recorder;
pub mod settings;
mod recipe;
mod jobs;

pub use error::{Error, Result};
pub use jobs::{
    Bench, CallMemory, Converted, Exported, Generated, Image, Inspection, Plan, bench, call_memory,
    compare, convert, export, generate, inspect, plan, run,
};
pub use profile::Share;
pub use recipe::{MethodSettings, Recipe};
pub use secateur_eval::Report;
pub use secateur_models::Observer;

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
