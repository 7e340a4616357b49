//! Sources of statistics.

use crate::calibration::{Calibration, InputStatistics, SavedStatistics};
use crate::error::{Error, Result};
use crate::plan::SharedInput;
use crate::run::journal::Journal;
use crate::run::outcome::Statistics;

/// A source of statistics.
pub enum Source<'a> {
    /// Runs the model for each package, with the given weights of the steps: see
    /// [`Calibration::step_weights`]. The journal, if any, saves the sums.
    Calibration(&'a Calibration, &'a [f64], Option<&'a Journal>),
    /// Statistics on disk, gathered before on the unpruned model.
    Saved(&'a SavedStatistics),
    /// Statistics that were just gathered on the unpruned model, for the only package.
    Gathered(&'a Statistics),
}

impl Source<'_> {
    /// Returns the statistics of an input. `gathered` are those of a calibration.
    pub(crate) fn statistics(
        &self,
        input: &SharedInput,
        gathered: &Statistics,
    ) -> Result<InputStatistics> {
        let gathered = match self {
            Source::Saved(saved) => return saved.input(&input.name, input.width()),
            Source::Gathered(gathered) => gathered,
            Source::Calibration(..) => gathered,
        };
        match gathered.get(&input.name) {
            Some(packed) => packed.whole(),
            None => {
                let problem = "no statistics: the model ran without calling it";
                Err(Error::layer(&input.name, problem))
            }
        }
    }
}
