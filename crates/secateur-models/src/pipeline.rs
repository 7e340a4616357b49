//! From prompts to pictures.

mod denoising;
mod model;
mod noise;

pub use denoising::Denoising;
pub use model::Pipeline;
pub use noise::noise;
