//! The jobs, one file each, and their common parts.

pub(crate) mod folder;
mod memory_needs;
mod prompts;
mod compare;
mod plan;
mod bench;
mod convert;
mod export;
mod generate;
mod inspect;
mod compression;
mod prune;
mod slim;
mod skip;
mod chain;
mod run;

pub use bench::{Bench, bench};
pub use compare::compare;
pub use convert::{Converted, convert};
pub use export::{Exported, export};
pub use generate::{Generated, Image, generate};
pub use inspect::{CallMemory, Inspection, call_memory, inspect};
pub use plan::Plan;
pub use run::{plan, run};
