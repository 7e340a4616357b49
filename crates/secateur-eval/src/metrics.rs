//! Distances of pictures and latents from a reference: one file per metric.

mod psnr;
mod relative_error;
mod ssim;

pub use psnr::{PSNR_CAP, psnr, psnr_capped};
pub use relative_error::relative_error;
pub use ssim::ssim;
