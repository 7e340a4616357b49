//! How an output is made.

use crate::observer::Observer;

/// How an output is made.
#[derive(Clone, Copy)]
pub struct OutputOptions<'a> {
    /// Whether to replace an existing output at the end. It must be as it was written.
    pub replace: bool,
    /// Whether to resume a run that was stopped.
    pub resume: bool,
    /// Whether the output is a part of another output, and lies in the progress of that.
    pub part: bool,
    /// Receives the messages that the user must see.
    pub observer: &'a dyn Observer,
}

impl Default for OutputOptions<'_> {
    fn default() -> Self {
        Self { replace: false, resume: false, part: false, observer: &() }
    }
}
