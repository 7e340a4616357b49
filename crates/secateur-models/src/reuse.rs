//! Reuse of the outputs of a denoiser's units: at some calls of a run a unit does not run, and
//! outputs of earlier calls replace its own (DiP-GO, Zhu et al. 2024, arXiv 2410.16942).

mod forecast;
mod gates;
mod schedule;

pub use forecast::{Made, Past};
pub use gates::Reuse;
pub use schedule::ReuseSchedule;
