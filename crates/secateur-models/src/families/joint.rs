//! Transformers in which text and image attend jointly.

mod block;
mod flux;
mod mmdit;

pub use flux::{Flux, FluxConfig};
pub use mmdit::{Mmdit, MmditConfig};
