//! The rows of a table, and how they are filled.

use crate::cell::{Cell, path, write};
use crate::seed::Seed;
use crate::sheet;
use anyhow::Result;
use secateur_eval::Summary;
use secateur_models::Pipeline;
use secateur_prune::Outcome;
use std::path::Path;

type Pruning = dyn Fn(&Seed<'_>, &mut Pipeline) -> Result<Outcome> + Send + Sync;

/// A row of a table: a way to prune.
pub(crate) struct Row {
    /// In the names of its cells' files.
    pub(crate) name: String,
    pub(crate) label: String,
    /// Prunes a pipeline that was just opened.
    pub(crate) prune: Box<Pruning>,
}

/// A table.
#[derive(Default)]
pub(crate) struct Study {
    /// Said above the table.
    pub(crate) about: &'static str,
    /// Of all calibrations.
    pub(crate) token_stride: usize,
    /// Each group is done for all seeds before the next.
    pub(crate) groups: Vec<Vec<Row>>,
    /// Whether the table tells how much is gone.
    pub(crate) sizes: bool,
    /// The name of the row that the others are compared with, seed by seed.
    pub(crate) baseline: Option<String>,
}

impl Study {
    /// Makes the cells that are missing.
    pub(crate) fn fill(&self, model: &Path, out: &Path, seeds: u64) -> Result<()> {
        std::fs::create_dir_all(out)?;
        for rows in &self.groups {
            for seed in 0..seeds {
                let missing = rows.iter().filter(|row| !path(out, seed, &row.name).exists());
                let missing: Vec<&Row> = missing.collect();
                if !missing.is_empty() {
                    fill(&Seed::new(model, out, seed, self.token_stride)?, &missing)?;
                }
            }
        }
        Ok(())
    }
}

/// Makes the cells of some rows.
fn fill(seed: &Seed<'_>, rows: &[&Row]) -> Result<()> {
    println!("seed {}: dense", seed.seed);
    let dense = seed.samples(&seed.pipeline()?, "dense")?;
    sheet::save(dense.pictures(), seed.out, seed.seed, "dense")?;
    for row in rows {
        println!("seed {}: {}", seed.seed, row.label);
        let mut pipeline = seed.pipeline()?;
        let outcome = (row.prune)(seed, &mut pipeline)?;
        let samples = seed.samples(&pipeline, &row.label)?;
        sheet::save(samples.pictures(), seed.out, seed.seed, &row.name)?;
        let (comparison, _) = dense.compare(&samples)?;
        let of_layers = outcome.layers.iter().map(|layer| layer.error);
        let errors = of_layers.chain(outcome.groups.iter().filter_map(|group| group.error));
        let errors = Summary::of(&errors.collect::<Vec<_>>())?;
        let cell = Cell {
            comparison,
            mean_layer_error: errors.mean,
            largest_layer_error: errors.maximum,
            removed: Some(seed.removed(&pipeline)?),
        };
        write(&path(seed.out, seed.seed, &row.name), &cell)?;
    }
    Ok(())
}
