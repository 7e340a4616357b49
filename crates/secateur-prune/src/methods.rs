//! The methods: functions from statistics and weights to new weights.

mod method;
mod low_rank;
mod turn;
mod structured;
mod task;
mod magnitude;
mod wanda;
mod dsnot;
mod obs;
mod l1;
mod taylor;
mod slim;
mod registry;

pub use dsnot::Dsnot;
pub use l1::L1;
pub use magnitude::Magnitude;
pub use method::{LayerWeight, Method, Solved, ToPrune};
pub use obs::Obs;
pub use registry::{METHODS, NamedMethod};
pub use slim::{Neurons, Rows, Slim};
pub use structured::{Layers, Removed, StructuredMethod};
pub use task::Task;
pub use taylor::Taylor;
pub use turn::Turn;
pub(crate) use turn::turn;
pub use wanda::Wanda;
