//! Progress of long work, and its end on request.

use crate::error::Result;
/// Told about progress; may end the work.
pub trait Observer {
    /// A stage of `total` units begins.
    fn begin(&self, stage: &str, total: usize, unit: &str) {
        let _ = (stage, total, unit);
    }

    /// `amount` more units are done.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted) to stop.
    fn advance(&self, amount: usize) -> Result<()> {
        let _ = amount;
        Ok(())
    }

    /// How the work stands, in a few words.
    fn tell(&self, state: &str) {
        let _ = state;
    }

    /// What the user must know.
    fn warn(&self, text: &str) {
        let _ = text;
    }
}

/// Nobody is interested.
impl Observer for () {}
