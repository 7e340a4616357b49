//! Skipping: which parts of a diffusion model need not be computed at every step (DiP-GO, Zhu et
//! al. 2024, arXiv 2410.16942), and plain rules to compare with.
//!
//! A [`SuperNet`] is a model in which every unit, at every call but the first of a run, can be
//! replaced by a forecast from its earlier outputs. Gradients of a loss of the final pictures say
//! how much each unit matters at each call. A [`Search`] tries plain rules on a few pictures.
//! [`learn`] trains a small network ([`Pruner`]) with these gradients, and scores every unit at
//! every call. [`Scores`] give a [`ReuseSchedule`](secateur_models::ReuseSchedule) for any share of
//! the work. [`Search::select`] tries these schedules besides the rules, and improves the closest
//! one by exchanges. [`compare()`] compares the results with fewer steps.

// In the order in which data passes them: a module imports only from those above it.
mod error;
mod supernet;
mod loss;
mod pruner;
mod scores;
mod progress;
mod settings;
mod rules;
mod learn;
mod select;
mod baselines;
mod compare;

pub use baselines::{Way, ways};
pub use compare::{Compared, compare};
pub use error::{Error, Result};
pub use learn::{Learned, Point, learn};
pub use loss::Loss;
pub use progress::Progress;
pub use pruner::Pruner;
pub use rules::{evenly, first_unit, random};
pub use scores::{Scores, Selection, kept};
pub use select::{Search, Selected, Tried};
pub use settings::Learning;
pub use supernet::{Run, SuperNet};
