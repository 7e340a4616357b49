//! The program.

mod cli;

use clap::Parser;
use cli::{Cli, progress, run, say};
use std::process::ExitCode;

/// A forward pass allocates and frees the same megabytes again and again. The system's allocator
/// would return them to the system and fault them in again each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Makes the tensor library's threads sleep when they wait. By default they spin for a millisecond
/// after each large sum, on the cores that the kernels need, which takes a third of the time with
/// two cores.
#[expect(unsafe_code, reason = "the environment is the only way to tell them")]
fn no_spinning() {
    const SPIN_LIMIT: &str = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(SPIN_LIMIT).is_none() {
        // SAFETY: main has only begun, and there is no other thread that could read the
        // environment.
        unsafe { std::env::set_var(SPIN_LIMIT, "1") };
    }
}

/// The exit code of a request that cannot be served, as clap's.
const REQUEST_CODE: u8 = 2;

/// Returns an error's text with its causes, without causes that the text already contains.
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
    let is = |error: &anyhow::Error, kind: fn(&secateur::Error) -> bool| {
        error.downcast_ref().is_some_and(kind)
    };
    match run(Cli::parse()) {
        Ok(()) if progress::check().is_ok() => ExitCode::SUCCESS,
        // After it was written, or with what there was until then.
        Ok(()) => ExitCode::from(progress::INTERRUPTED_CODE),
        Err(error) if is(&error, secateur::Error::is_interruption) => {
            say("interrupted: no output was written");
            ExitCode::from(progress::INTERRUPTED_CODE)
        }
        Err(error) => {
            say(&format!("error: {}", told(&error)));
            match is(&error, secateur::Error::is_request) {
                true => ExitCode::from(REQUEST_CODE),
                false => ExitCode::FAILURE,
            }
        }
    }
}
