//! What compression cost: image metrics, text-image scores, and the report.
//!
//! Two models make pictures from the same prompts and the same noise. [`psnr`] and [`ssim`] say how far the pictures
//! of the second (the *candidate*) are from those of the first (the *reference*), [`relative_error`] says the same of
//! their latents, and [`Summary`] gathers a metric over the prompts. A [`Report`] holds these figures with the layers,
//! the stages and the settings of the run as plain data; [`Report::write`] leaves `report.html` and `report.json`.

mod error;
mod html;
mod image_metrics;
mod picture;
mod report;
mod samples;
mod spread;
mod ssim;
mod summary;
mod write;

pub use error::{Error, Result};
pub use html::{PicturePair, html};
pub use image_metrics::{PSNR_CAP, psnr, psnr_capped, relative_error};
pub use picture::Picture;
pub use report::{
    Comparison, GroupReport, LayerReport, ModelSummary, PromptRow, Report, SkippingReport, Stage, TextImage, WayReport,
};
pub use samples::{Samples, split};
pub use spread::Spread;
pub use ssim::ssim;
pub use summary::Summary;
