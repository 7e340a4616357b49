//! What a diffusion model need not compute at every step (DiP-GO, Zhu et al. 2024, arXiv
//! 2410.16942), and plain rules to hold it against.
//!
//! A [`SuperNet`] is a model in which every unit, at every call but the first of a run, may take
//! over a forecast of what it made before; gradients of a loss of the final pictures tell how much
//! each call of each unit is missed. A [`Search`] tries plain rules on a few pictures. [`learn`]
//! lets a small network ([`Pruner`]) learn by the gradients which to compute, and gives a score to
//! each; [`Scores`] make a [`ReuseSchedule`](secateur_models::ReuseSchedule) of them for any share
//! of the work that is to be left. [`Search::select`] tries these beside the rules, and makes the
//! closest closer by exchanges; [`compare()`] holds what it keeps against fewer steps.

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
