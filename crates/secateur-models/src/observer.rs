//! Progress of long work, and its end on request.

use crate::error::Result;

/// Told about progress; may end the work.
pub trait Observer {
    /// Work begins that leaves its files in order when it is told to stop. These stages are
    /// expected, in order: the first word of each one's name, and its seconds.
    fn start(&self, stages: &[(&str, f64)]) {
        let _ = stages;
    }

    /// A stage of `total` units begins.
    fn begin(&self, stage: &str, total: usize, unit: &str) {
        let _ = (stage, total, unit);
    }

    /// `amount` more units are done; with 0, only asks whether to go on.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted) to stop.
    fn advance(&self, amount: usize) -> Result<()> {
        let _ = amount;
        Ok(())
    }

    /// How the stage stands, in a few words.
    fn tell(&self, state: &str) {
        let _ = state;
    }

    /// The last stage is over.
    fn finish(&self) {}

    /// A line about the work, for those who watch it.
    fn note(&self, line: &str) {
        let _ = line;
    }

    /// A line that whoever started the work must see.
    fn say(&self, line: &str) {
        let _ = line;
    }

    /// A line about what may not be as wanted.
    fn warn(&self, text: &str) {
        let _ = text;
    }
}

/// Nobody is interested.
impl Observer for () {}
