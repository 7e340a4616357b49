//! The cost of compression: image metrics, text-image scores, and the report.
//!
//! Two models make pictures from the same prompts and the same noise. [`psnr`] and [`ssim`] measure
//! how far the pictures of the second (the *candidate*) are from those of the first (the
//! *reference*). [`relative_error`] measures the same for their latents. [`Summary`] summarises a
//! metric over the prompts. A [`Report`] has these figures, the layers, the stages and the settings
//! of the run as plain data. [`Report::write`] writes `report.html` and `report.json`.

// In the order in which data passes them: a module imports only from those above it.
mod error;
mod picture;
mod metrics;
mod summary;
mod spread;
mod report;
mod html;
mod write;
mod samples;

pub use error::{Error, Result};
pub use html::{PicturePair, html};
pub use metrics::{PSNR_CAP, psnr, psnr_capped, relative_error, ssim};
pub use picture::Picture;
pub use report::{
    Comparison, GroupReport, LayerReport, ModelSummary, PromptRow, Report, SkippingReport, Stage,
    TextImage, WayReport,
};
pub use samples::{Samples, split};
pub use spread::Spread;
pub use summary::Summary;
