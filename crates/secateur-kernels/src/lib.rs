//! CPU kernels for diffusion models: attention, norms, activations, Gram matrices.
//!
//! Every kernel is a function of contiguous `f32` slices, multithreaded with rayon, vectorised through run-time
//! dispatch, with the same result for any number of threads. [`ops`] hooks them into candle tensors.
//!
//! None of them has a backward: a gradient wanted through one of them is an error, never silently dropped.

pub mod activation;
pub mod attention;
pub mod gram;
pub mod linear;
pub mod norm;
pub mod obs;
pub mod ops;
mod simd;

pub use activation::Activation;
