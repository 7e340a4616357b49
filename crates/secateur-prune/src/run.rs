//! Executing a plan on a model, package after package.

mod setting;
mod budget;
mod outcome;
mod journal;
mod source;
mod solve;
mod influence;
mod module_error;
mod curves;
mod allocation;
mod carry;
mod driver;

pub use allocation::allocate;
pub use budget::Target;
pub use curves::tries;
pub use driver::prune;
pub use influence::influence_pictures;
pub use journal::{Identity, Journal};
pub use module_error::ModuleErrors;
pub use outcome::{GroupOutcome, LayerOutcome, Outcome, Statistics};
pub use setting::{Allocation, Amount, Budget, Setting, Settings};
pub use source::Source;
