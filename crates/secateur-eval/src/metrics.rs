//! How far pictures and latents are from a reference: one file a metric.

mod psnr;
mod relative_error;
mod ssim;

pub use psnr::{PSNR_CAP, psnr, psnr_capped};
pub use relative_error::relative_error;
pub use ssim::ssim;
