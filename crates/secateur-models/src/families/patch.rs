//! Transformers over the patches of the latents.

mod dit;
mod pixart;

pub use dit::{Dit, DitConfig};
pub use pixart::{Pixart, PixartConfig};
