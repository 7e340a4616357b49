//! The files from which a stopped run continues.

use crate::error::{Error, Result};
use secateur_models::Observer;
use secateur_models::files::{read_sealed, write_sealed};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A folder with the progress of a run, from which a stopped run continues.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The folder.
    pub folder: PathBuf,
    /// Everything that the result depends on, as text of the caller. Files of another request are
    /// not used.
    pub request: String,
}

/// The file of the learning's state.
pub(crate) const LEARNED: &str = "learned.json";
/// The beginning of the names of the network's files.
pub(crate) const PRUNER: &str = "pruner-";
/// The file of the schedules that were tried.
pub(crate) const TRIED: &str = "tried.json";
/// The time between two saves.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct File<T> {
    request: String,
    state: T,
}

impl Progress {
    /// Whether `name` is that of a file in a folder of progress.
    #[must_use]
    pub fn is_own(name: &str) -> bool {
        [LEARNED, TRIED].contains(&name) || name.starts_with(PRUNER)
    }

    /// Reads a file of the folder. Returns `None` if there is none, or if it is damaged, and then
    /// says so to the observer.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        name: &str,
        observer: &dyn Observer,
    ) -> Result<Option<T>> {
        let path = self.folder.join(name);
        if !path.exists() {
            return Ok(None);
        }
        match read_sealed::<File<T>>(&path) {
            Ok(file) if file.request == self.request => Ok(Some(file.state)),
            Ok(_) => {
                let text = "it is of another run, of another model, or with other prompts or \
                    settings: give those again, or \
                    `force` begins anew";
                Err(problem(&path, &text))
            }
            Err(error) => {
                observer.warn(&format!("{error}: it is done again"));
                Ok(None)
            }
        }
    }

    /// Writes a file into the folder, atomically.
    pub(crate) fn write<T: Serialize>(&self, name: &str, state: T) -> Result<()> {
        let file = File { request: self.request.clone(), state };
        Ok(write_sealed(&self.folder.join(name), &file)?)
    }
}

/// Returns the error that a file, or its content, cannot be used.
pub(crate) fn problem(path: &Path, problem: &impl ToString) -> Error {
    Error::Progress { path: path.to_owned(), problem: problem.to_string() }
}

/// An observer that only passes on interruptions.
pub(crate) struct Quiet<'a>(pub(crate) &'a dyn Observer);

impl Observer for Quiet<'_> {
    fn advance(&self, _: usize) -> secateur_models::Result<()> {
        self.0.advance(0)
    }
}
