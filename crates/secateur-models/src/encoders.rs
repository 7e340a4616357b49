//! Text encoders, CLIP, and the preparation of their inputs.

pub(crate) mod clip;
mod image_processor;
pub(crate) mod t5;
pub(crate) mod tokenizers;

pub(crate) use clip::PROJECTED;
pub use clip::{ClipModel, ClipTextConfig, ClipTextModel, ClipTextOutput};
pub use image_processor::ClipImageProcessor;
pub use t5::{T5Config, T5Encoder};
pub(crate) use tokenizers::row_length;
pub use tokenizers::{ClipTokenizer, T5Tokenizer};
