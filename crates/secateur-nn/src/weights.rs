//! The named tensors of a component, and how models are built from them.

mod parameters;
mod weight;

pub use parameters::{Fit, Mismatch, Parameters, Scope, Wanted};
pub(crate) use weight::Packed;
pub use weight::Weight;
