//! Calibration: running a model to gather the statistics of the inputs of its layers.

mod weighting;
mod settings;
mod fingerprint;
mod statistics;
mod hessian;
mod saved;
mod moments;
mod calibrator;
pub(crate) mod sums;
mod calibrate;
mod measured;

pub(crate) use calibrate::calibrate;
pub use calibrator::Calibrator;
pub use fingerprint::Fingerprint;
pub use hessian::{Factor, hessian_error};
pub(crate) use hessian::{damped_factor, diagonal, indices, without};
pub use saved::SavedStatistics;
pub use settings::Calibration;
pub use statistics::{InputStatistics, PackedStatistics};
pub(crate) use sums::{Keeper, Sums};
pub use weighting::Weighting;
