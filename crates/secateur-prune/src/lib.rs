//! Training-free compression of diffusion models: calibration, Hessians, OBS-Diff and its baselines.
//!
//! Data flows one way: a [`Plan`] says which layers, in which packages; calibration runs the model and gathers one
//! [`InputStatistics`] per distinct layer input; a [`Method`] turns weights and statistics into pruned weights. A
//! method never runs a model, and nothing here names one.
//!
//! The main job, on one prompt and two steps to be quick:
//!
//! ```
//! use secateur_models::{ModelFolder, OutputFolder, OutputOptions, Pipeline, Sampling};
//! use secateur_prune::{Calibration, Obs, Packages, Pattern, Plan, Selection, Source, Task, Weighting, prune};
//! # let temporary = tempfile::tempdir()?;
//! # let out = temporary.path().join("pruned");
//!
//! let folder = ModelFolder::open("../../models/emoji-mmdit".as_ref(), None)?;
//! let prompts = vec!["red apple, noto style emoji".to_owned()];
//! let sampling = Sampling { steps: 2, ..folder.sampling() };
//! let calibration = Calibration { prompts, sampling: sampling.clone(), weighting: Weighting::LogDecrease, token_stride: 4 };
//! let task = Task::Weights { method: &Obs, pattern: Pattern::unstructured(0.5)? };
//! let plan = Plan::new(&folder.structure(&sampling), &Selection::default(), Packages::Count(1), &task)?;
//! let output = OutputFolder::create(&out, OutputOptions::default(), &[folder.path()])?;
//!
//! let mut pipeline = Pipeline::open(folder)?;
//! let step_weights = calibration.step_weights(&mut pipeline, &())?;
//! let source = Source::Calibration(&calibration, &step_weights, None);
//! let outcome = prune(&mut pipeline, &plan, &task, &source, None, None, &())?;
//! pipeline.folder().write(&output.path(), &outcome.edits, &())?;
//! output.finish()?;
//! # assert_eq!(outcome.layers.len(), 93);
//! # assert!(out.join("model_index.json").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allocation;
mod budget;
mod calibrate;
mod carry;
mod driver;
mod dsnot;
mod error;
mod fingerprint;
mod hessian;
mod journal;
mod low_rank;
mod magnitude;
mod measured;
mod method;
mod module_error;
mod obs;
mod pattern;
mod plan;
mod slim;
mod statistics;
mod structured;
mod sums;
mod surgeon;
mod task;
mod taylor;
mod wanda;
mod weighting;

pub use allocation::{Allocation, Amount, Budget, Setting, Settings, allocate, influence_pictures, tries};
pub use budget::Target;
pub use calibrate::{Calibration, Calibrator};
pub use carry::Turn;
pub use driver::{GroupOutcome, LayerOutcome, Outcome, Source, Statistics, prune};
pub use dsnot::Dsnot;
pub use error::{Error, Result};
pub use fingerprint::Fingerprint;
pub use hessian::{Factor, hessian_error};
pub use journal::{Journal, Run};
pub use magnitude::Magnitude;
pub use method::{LayerWeight, Method, Solved};
pub use module_error::ModuleErrors;
pub use obs::Obs;
pub use pattern::Pattern;
pub use plan::{Package, Packages, Plan, PlannedGroup, PlannedLayer, Selection, SharedInput};
pub use slim::{Neurons, Rows, Slim};
pub use statistics::{InputStatistics, SavedStatistics};
pub use structured::{L1, Layers, Removed, StructuredMethod};
pub use task::{Removal, Task};
pub use taylor::Taylor;
pub use wanda::Wanda;
pub use weighting::Weighting;
