//! The named tensors of a component, and how models are built from them.

mod parameters;
mod stream;
mod weight;

pub use parameters::{Fit, Kind, Mismatch, Parameters, Scope, Wanted};
pub use stream::Stream;
pub(crate) use weight::Packed;
pub use weight::Weight;
