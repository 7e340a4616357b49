//! Sources of statistics.

use crate::calibration::{Calibration, InputStatistics, SavedStatistics};
use crate::error::{Error, Result};
use crate::plan::SharedInput;
use crate::run::journal::Journal;
use crate::run::outcome::Statistics;
use std::borrow::Cow;

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
    pub(crate) fn statistics<'a>(
        &'a self,
        input: &SharedInput,
        gathered: &'a Statistics,
    ) -> Result<Cow<'a, InputStatistics>> {
        let gathered = match self {
            Source::Saved(saved) => return saved.input(&input.name, input.width()).map(Cow::Owned),
            Source::Gathered(gathered) => gathered,
            Source::Calibration(..) => gathered,
        };
        let found = gathered.get(&input.name).map(Cow::Borrowed);
        found.ok_or_else(|| {
            Error::layer(&input.name, "no statistics: the model ran without calling it")
        })
    }
}
