//! One file a command, and what they share.

mod request;
mod prompts;
mod compare;
mod told;
mod bench;
mod convert;
mod export;
mod generate;
mod inspect;
mod compression;
mod prune;
mod slim;
mod skip;
mod compress;

use crate::args::{Cli, Command};
use crate::progress::warn;
use anyhow::Result;

/// More threads than this a core only wait for each other.
const THREADS_A_CORE: usize = 4;

pub(crate) fn run(cli: Cli) -> Result<()> {
    let asked = cli.common.threads.map_or_else(num_cpus::get_physical, usize::from);
    let threads = asked.min(THREADS_A_CORE * num_cpus::get());
    if threads < asked {
        warn(&format!("{threads} threads are as many as this machine has use for"));
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    // Within the pool: work handed to it from outside costs a wake-up and a wait at every kernel.
    rayon::scope(|_| match cli.command {
        Command::Prune(args) => prune::run(&args, &cli.common),
        Command::Slim(args) => slim::run(&args, &cli.common),
        Command::Skip(args) => skip::run(&args, &cli.common),
        Command::Compress(args) => compress::run(&args, &cli.common),
        Command::Generate(args) => generate::run(&args, &cli.common),
        Command::Inspect(args) => inspect::run(&args, &cli.common),
        Command::Compare(args) => compare::run(&args, &cli.common),
        Command::Bench(args) => bench::run(&args, &cli.common),
        Command::Convert(args) => convert::run(&args, &cli.common),
        Command::Export(args) => export::run(&args, &cli.common),
    })
}
