//! Model folders in the diffusers layout: opening, describing, saving, and conversion from single
//! files.

mod index;
mod manifest;
mod memory;
mod model_folder;
mod prompts;
mod sampling;
mod save;
mod single_file;

pub use manifest::{ChangedShape, Manifest, Prompts};
pub use memory::WeightBytes;
pub use model_folder::ModelFolder;
pub use prompts::Captions;
pub use single_file::Conversion;
