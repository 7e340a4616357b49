//! CPU kernels for diffusion models: products, attention, convolution, norms, activations, rotary positions, Gram matrices, and the OBS
//! solver's inner loop.
//!
//! Every kernel is a function of contiguous `f32` slices, multithreaded with rayon, vectorised through run-time
//! dispatch, with the same result for any number of threads. [`ops`] hooks them into candle tensors, with a backward for
//! each.

pub mod activation;
pub mod attention;
pub mod convolution;
pub mod factor;
pub mod gram;
pub mod linear;
pub mod norm;
pub mod obs;
pub mod ops;
pub mod product;
pub mod rope;
mod simd;
mod transpose;

pub use activation::Activation;
pub use convolution::ConvolutionWeight;
pub use linear::LinearWeight;
pub use product::Panels;
