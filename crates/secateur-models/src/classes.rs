//! The pipeline classes of diffusers, as data: their components, and how they sample where a
//! model's files do not say.

mod class;
mod components;
mod conditioner;
mod dit;
mod flux;
mod pixart;
mod sampling;
mod stable_diffusion;
mod stable_diffusion_3;
mod stable_diffusion_xl;
mod unconditional;

pub(crate) use class::{Component, PipelineClass, SCHEDULER, VAE};
pub use class::{Generation, Subject};
pub use components::Labels;
pub(crate) use components::{Components, INDEX, class_of};
pub(crate) use conditioner::Conditioner;
pub use sampling::Sampling;

/// All classes.
pub(crate) static CLASSES: [&PipelineClass; 8] = [
    &stable_diffusion::CLASS,
    &stable_diffusion_xl::CLASS,
    &stable_diffusion_3::CLASS,
    &flux::CLASS,
    &pixart::ALPHA,
    &pixart::SIGMA,
    &dit::CLASS,
    &unconditional::CLASS,
];
