//! Observers of long work, who see its progress and can stop it.

use crate::error::Result;

/// Observes the progress of long work, and can stop it.
pub trait Observer {
    /// Begins work that can be stopped with its files in order. `stages` are the expected stages in
    /// order, each with the first word of its name and its duration in seconds.
    fn start(&self, stages: &[(&str, f64)]) {
        let _ = stages;
    }

    /// Begins a stage of `total` units.
    fn begin(&self, stage: &str, total: usize, unit: &str) {
        let _ = (stage, total, unit);
    }

    /// Reports that `amount` more units are done. With 0, asks only whether to go on.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted) to stop.
    fn advance(&self, amount: usize) -> Result<()> {
        let _ = amount;
        Ok(())
    }

    /// Reports the state of the stage, in a few words.
    fn tell(&self, state: &str) {
        let _ = state;
    }

    /// Ends the last stage.
    fn finish(&self) {}

    /// Passes on a line about the work, for those who watch it.
    fn note(&self, line: &str) {
        let _ = line;
    }

    /// Passes on a line that the user must see.
    fn say(&self, line: &str) {
        let _ = line;
    }

    /// Passes on a warning.
    fn warn(&self, text: &str) {
        let _ = text;
    }
}

/// The observer that ignores everything.
impl Observer for () {}
