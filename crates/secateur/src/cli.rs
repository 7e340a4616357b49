//! The command line.

mod args;
mod print;
pub(crate) mod progress;
mod told;
mod commands;

pub(crate) use args::Cli;
pub(crate) use commands::run;
pub(crate) use print::say;
