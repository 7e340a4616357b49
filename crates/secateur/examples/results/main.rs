//! The tables of docs/results.md: ways to prune a model, over several seeds.
//!
//! `cargo run --release --example results -- models/emoji-mmdit results/emoji-mmdit --study methods
//! --seeds 3`
//!
//! A seed sets the calibration prompts, their noise, and the noise of the judged pictures. Each
//! cell is a JSON file in the output folder, with a PNG file of its first pictures; a run that was
//! stopped goes on with the cells that are missing, and `results --study methods --table
//! results/emoji-mmdit` prints what there is.

#![expect(clippy::print_stdout, reason = "it prints a table")]

mod cell;
mod sheet;
mod seed;
mod rows;
mod slim;
mod study;
mod table;
mod skip;

use anyhow::{Result, bail};
use clap::Parser;
use rows::Study;
use secateur_models::{Sampler, UnitKind};
use skip::SkipStudy;
use std::path::PathBuf;
use study::StudyName;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Make a table of docs/results.md
#[derive(Parser)]
struct Arguments {
    /// Model folder
    #[arg(required_unless_present = "table")]
    model: Option<PathBuf>,
    /// Folder for the cells
    #[arg(required_unless_present = "table")]
    out: Option<PathBuf>,
    /// What is compared
    #[arg(long, value_enum, default_value_t = StudyName::Methods)]
    study: StudyName,
    /// Shares of the parameters that go, where the study takes them
    #[arg(long, value_name = "SHARE,...", value_delimiter = ',', default_values_t = [0.05, 0.12,
        0.2,
        0.3])]
    budgets: Vec<f64>,
    /// Iterations of an optimisation at most, where the study learns
    #[arg(long, value_name = "N", default_value_t = 100)]
    iterations: usize,
    /// Denoising steps, where the study learns [default: the model's]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Sampler, where the study learns [default: the model's]
    #[arg(long, value_name = "NAME")]
    sampler: Option<Sampler>,
    /// Units, where the study learns
    #[arg(long, value_name = "KIND", default_value_t = UnitKind::Block)]
    units: UnitKind,
    /// Number of seeds, from 0
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// Only print the table of the cells in this folder
    #[arg(long, value_name = "OUT", conflicts_with_all = ["model", "out", "seeds"])]
    table: Option<PathBuf>,
    /// Also put pictures of the dense model and of some rows of this table below each other, into a
    /// PNG file
    #[arg(long, value_name = "FILE", requires = "table", requires = "rows")]
    sheet: Option<PathBuf>,
    /// Rows of the sheet, as their cells' files are called
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "sheet")]
    rows: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.study == StudyName::Skip {
        return skipping(&arguments);
    }
    let study = Study::new(arguments.study, &arguments.budgets)?;
    match (&arguments.table, &arguments.model, &arguments.out) {
        (Some(out), ..) => {
            if let Some(sheet) = &arguments.sheet {
                let rows = study.groups.iter().flatten();
                let known: Vec<&str> = rows.map(|row| row.name.as_str()).collect();
                sheet::stack(&known, &arguments.rows, out, sheet)?;
            }
            table::print(&study, out, 100)
        }
        (None, Some(model), Some(out)) => {
            // Within the thread pool, as the binary's commands.
            rayon::scope(|_| study.fill(model, out, arguments.seeds))?;
            table::print(&study, out, arguments.seeds)
        }
        _ => bail!("MODEL and OUT are needed"),
    }
}

fn skipping(arguments: &Arguments) -> Result<()> {
    let &Arguments { steps, sampler, units, iterations, .. } = arguments;
    let study = SkipStudy { steps, sampler, units, iterations };
    match (&arguments.table, &arguments.model, &arguments.out) {
        (Some(out), ..) => skip::print(out, 100),
        (None, Some(model), Some(out)) => {
            rayon::scope(|_| study.fill(model, out, arguments.seeds))?;
            skip::print(out, arguments.seeds)
        }
        _ => bail!("MODEL and OUT are needed"),
    }
}
