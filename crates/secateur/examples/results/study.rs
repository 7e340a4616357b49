//! What is compared with what.

use crate::seed::{Cell, Seed};
use anyhow::Result;
use clap::ValueEnum;
use secateur_models::Pipeline;
use secateur_prune::{Calibration, Magnitude, Method, Obs, Outcome, Pattern, Source, Task, Wanda, Weighting};
use std::path::Path;

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum StudyName {
    /// Every method at every sparsity
    Methods,
    /// Every weighting of the denoising steps
    Weighting,
}

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
pub(crate) struct Study {
    /// Said above the table.
    pub(crate) about: &'static str,
    /// Of all calibrations.
    pub(crate) token_stride: usize,
    /// Each group is done for all seeds before the next.
    pub(crate) groups: Vec<Vec<Row>>,
    /// The name of the row that the others are compared with, seed by seed.
    pub(crate) baseline: Option<String>,
}

impl Study {
    pub(crate) fn new(name: StudyName) -> Result<Self> {
        match name {
            StudyName::Methods => Self::methods(),
            StudyName::Weighting => Self::weightings(),
        }
    }

    fn methods() -> Result<Self> {
        const METHODS: [&dyn Method; 3] = [&Obs, &Wanda, &Magnitude];
        let rows = |name: &str, label: &str, pattern: Pattern| {
            METHODS.map(|method| Row {
                name: format!("{}-{name}", method.name()),
                label: format!("{} {label}", method.name()),
                prune: Box::new(move |seed, pipeline| {
                    let statistics = seed.statistics()?;
                    seed.prune(pipeline, &Task::Weights { method, pattern }, &Source::Saved(&statistics))
                }),
            })
        };
        // The first sparsity over all seeds comes first: it is the one whose spread matters most.
        let first = rows("0.5", "50 %", Pattern::unstructured(0.5)?).into();
        let others = [
            rows("0.6", "60 %", Pattern::unstructured(0.6)?),
            rows("0.7", "70 %", Pattern::unstructured(0.7)?),
            rows("2of4", "2:4", "2:4".parse()?),
        ];
        let others = others.into_iter().flatten().collect();
        let about = "Hessians of all tokens.";
        Ok(Self { about, token_stride: 1, groups: vec![first, others], baseline: None })
    }

    fn weightings() -> Result<Self> {
        let pattern = Pattern::unstructured(0.5)?;
        let row = |weighting: Weighting| Row {
            name: format!("weighting-{weighting}"),
            label: weighting.to_string(),
            prune: Box::new(move |seed, pipeline| {
                let calibration = Calibration { weighting, ..seed.calibration().clone() };
                seed.prune(pipeline, &Task::Weights { method: &Obs, pattern }, &Source::Calibration(&calibration))
            }),
        };
        let rows = Weighting::ALL.map(row);
        let baseline = format!("weighting-{}", Weighting::Uniform);
        let about = "obs 50 %, one package, Hessians of every fourth token. Differences are to uniform, seed by seed: the \
                     prompts, the noise and the dense pictures of a seed are the same in all rows. Each row's layer error \
                     is under its own Hessian.";
        Ok(Self { about, token_stride: 4, groups: vec![rows.into()], baseline: Some(baseline) })
    }

    /// Makes the cells that are missing.
    pub(crate) fn fill(&self, model: &Path, out: &Path, seeds: u64) -> Result<()> {
        std::fs::create_dir_all(out)?;
        for rows in &self.groups {
            for seed in 0..seeds {
                let missing = rows.iter().filter(|row| !Cell::path(out, seed, &row.name).exists());
                let missing: Vec<&Row> = missing.collect();
                if !missing.is_empty() {
                    Seed::new(model, out, seed, self.token_stride)?.fill(&missing)?;
                }
            }
        }
        Ok(())
    }
}
