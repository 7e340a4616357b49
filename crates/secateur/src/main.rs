//! The command line of secateur.

mod args;
mod commands;
mod format;
mod machine;
mod memory;
mod profile;
mod progress;

use clap::Parser;
use std::process::ExitCode;

/// A forward pass allocates and frees the same megabytes again and again; the system's allocator would give them back
/// and fault them in each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if progress::is_interruption(&error) => {
            progress::say("interrupted: no output was written");
            ExitCode::from(130)
        }
        Err(error) => {
            progress::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
