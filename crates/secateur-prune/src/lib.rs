//! Training-free compression of diffusion models: calibration, Hessians, OBS-Diff and its
//! baselines.
//!
//! Data flows one way. A [`Plan`] lists the layers to prune, in packages. Calibration runs the
//! model and gathers one [`InputStatistics`] per distinct layer input. A [`Method`] turns weights
//! and statistics into pruned weights. A method never runs a model, and no code here depends on a
//! model family.
//!
//! An example, with one prompt and two steps to be quick:
//!
//! ```
//! use secateur_models::{ModelFolder, OutputFolder, OutputOptions, Pipeline, Sampling};
//! use secateur_prune::{Calibration, Obs, Packages, Pattern, Plan, Selection, Source};
//! use secateur_prune::{Task, Weighting, prune};
//! # let temporary = tempfile::tempdir()?;
//! # let out = temporary.path().join("pruned");
//!
//! let folder = ModelFolder::open("../../models/emoji-mmdit".as_ref(), None)?;
//! let prompts = vec!["red apple, noto style emoji".to_owned()];
//! let sampling = Sampling { steps: 2, ..folder.sampling() };
//! let weighting = Weighting::LogDecrease;
//! let calibration =
//!     Calibration { prompts, sampling: sampling.clone(), weighting, token_stride: 4 };
//! let task = Task::Weights { method: &Obs, pattern: Pattern::unstructured(0.5)? };
//! let structure = folder.structure(&sampling);
//! let plan = Plan::new(&structure, &Selection::default(), Packages::Count(1), &task)?;
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

// In the order in which data passes them: a module imports only from those above it.
mod error;
mod plan;
mod calibration;
mod methods;
mod run;

pub use calibration::{
    Calibration, Calibrator, Factor, Fingerprint, InputStatistics, PackedStatistics,
    SavedStatistics, Weighting, hessian_error,
};
pub use error::{Error, Result};
pub use methods::{
    Dsnot, L1, LayerWeight, Layers, METHODS, Magnitude, Method, NamedMethod, Neurons, Obs, Removed,
    Rows, Slim, Solved, StructuredMethod, Task, Taylor, ToPrune, Turn, Wanda,
};
pub use plan::{
    Change, Demand, Package, Packages, Pattern, Plan, PlannedGroup, PlannedLayer, Portion,
    Selection, SharedInput,
};
pub use run::{
    Allocation, Amount, Budget, GroupOutcome, Identity, Journal, LayerOutcome, ModuleErrors,
    Outcome, Setting, Settings, Source, Statistics, Target, allocate, influence_pictures, prune,
    tries,
};
