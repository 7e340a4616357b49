//! From prompts to pictures.

mod noise;
mod texts;
mod model;
mod denoising;

pub use denoising::{Denoising, Halfway};
pub use model::Pipeline;
pub use noise::noise;
