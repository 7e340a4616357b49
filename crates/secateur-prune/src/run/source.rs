//! Where statistics come from.

use crate::calibration::{Calibration, InputStatistics, SavedStatistics};
use crate::error::{Error, Result};
use crate::plan::SharedInput;
use crate::run::journal::Journal;
use crate::run::outcome::Statistics;
use std::borrow::Cow;

/// Where statistics come from.
pub enum Source<'a> {
    /// The model is run for each package, with weights of the steps: see
    /// [`Calibration::step_weights`]. What is summed up is kept in the journal.
    Calibration(&'a Calibration, &'a [f64], Option<&'a Journal>),
    /// They were gathered before, on the model as it was.
    Saved(&'a SavedStatistics),
    /// They were gathered just now, on the model as it is, for the only package.
    Gathered(&'a Statistics),
}

impl Source<'_> {
    /// Those of an input; `gathered` are what a calibration came to.
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
