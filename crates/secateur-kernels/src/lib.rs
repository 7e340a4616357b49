//! CPU kernels for diffusion models: products, attention, convolution, norms, activations, rotary
//! positions, Gram matrices, and the OBS solver's inner loop.
//!
//! Every kernel is a function of contiguous `f32` slices, multithreaded with rayon, vectorised
//! through run-time dispatch, with the same result for any number of threads.

// Each imports only from those above it.
mod simd;
mod transpose;
pub mod product;
pub mod activation;
pub mod linear;
pub mod attention;
pub mod convolution;
pub mod gram;
pub mod factor;
pub mod norm;
pub mod rope;
pub mod obs;

pub use activation::Activation;
pub use convolution::ConvolutionWeight;
pub use linear::LinearWeight;
pub use product::Panels;
