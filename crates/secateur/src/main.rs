//! The command line of secateur.

// In the order in which data passes them: a module imports only from those above it.
mod args;
mod format;
mod memory;
mod usage;
mod profile;
mod machine;
mod estimate;
mod progress;
mod footprint;
mod commands;

use clap::Parser;
use std::process::ExitCode;

/// A forward pass allocates and frees the same megabytes again and again; the system's allocator
/// would give them back and fault them in each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The tensor library's threads wait for more work by spinning for a millisecond after each large
/// sum, on the cores that the kernels need: with two cores a third of the time. They can be told to
/// sleep at once.
#[expect(unsafe_code, reason = "the environment is the only way to tell them")]
fn no_spinning() {
    const SPIN_LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(SPIN_LIMIT).is_none() {
        // SAFETY: main has only begun, and there is no other thread that could read the
        // environment.
        unsafe { std::env::set_var(SPIN_LIMIT, "1") };
    }
}

/// An error with its causes, without those that it tells itself.
fn told(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // The tensor library adds the frames of the stack.
        let is_frame = |line: &&str| {
            line.trim_start().starts_with(|c: char| c.is_ascii_digit()) && line.starts_with("  ")
        };
        let cause = cause.lines().take_while(|line| !is_frame(line)).collect::<Vec<_>>().join("\n");
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

fn main() -> ExitCode {
    no_spinning();
    let cli = args::Cli::parse();
    match commands::run(cli) {
        Ok(()) if progress::check().is_ok() => ExitCode::SUCCESS,
        // After it was written, or with what there was until then.
        Ok(()) => ExitCode::from(progress::INTERRUPTED_CODE),
        Err(error) if progress::is_interruption(&error) => {
            progress::say("interrupted: no output was written");
            ExitCode::from(progress::INTERRUPTED_CODE)
        }
        Err(error) => {
            progress::say(&format!("error: {}", told(&error)));
            if usage::is_usage(&error) { ExitCode::from(usage::CODE) } else { ExitCode::FAILURE }
        }
    }
}
