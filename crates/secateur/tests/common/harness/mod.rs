//! What the tests of kills, failing operations, signals, damaged files and simultaneous runs share.

pub(crate) mod cases;
#[path = "../pipeline.rs"]
pub(crate) mod pipeline;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod shim;
pub(crate) mod tiny;
pub(crate) mod tree;
