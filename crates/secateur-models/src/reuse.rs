//! Stretches of a denoiser that are not computed at some calls of a run, but taken over from the
//! calls before (DiP-GO, Zhu et al. 2024, arXiv 2410.16942).

mod forecast;
mod gates;
mod schedule;

pub use forecast::{Made, Past};
pub use gates::Reuse;
pub use schedule::ReuseSchedule;
