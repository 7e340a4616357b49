//! Training-free compression of diffusion models: calibration, Hessians, OBS-Diff and its baselines.
//!
//! Data flows one way: a [`Plan`] says which layers, in which packages; calibration runs the model and gathers one
//! [`InputStatistics`] per distinct layer input; a [`Method`] turns weights and statistics into pruned weights. A
//! method never runs a model, and nothing here names one.

mod calibrate;
mod driver;
mod error;
mod fingerprint;
mod hessian;
mod magnitude;
mod method;
mod obs;
mod pattern;
mod plan;
mod statistics;
mod wanda;
mod weighting;

pub use calibrate::{Calibration, Calibrator};
pub use driver::{LayerOutcome, Outcome, Source, prune};
pub use error::{Error, Result};
pub use fingerprint::Fingerprint;
pub use hessian::{Factor, hessian_error};
pub use magnitude::Magnitude;
pub use method::{LayerWeight, Method, Solved};
pub use obs::Obs;
pub use pattern::Pattern;
pub use plan::{Package, Packages, Plan, PlannedLayer, Selection, SharedInput};
pub use statistics::{InputStatistics, SavedStatistics};
pub use wanda::Wanda;
pub use weighting::Weighting;
