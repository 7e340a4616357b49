//! What a run that is stopped leaves to go on with.

use crate::error::{Error, Result};
use secateur_models::Observer;
use secateur_models::files::{read_sealed, write_sealed};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A folder that has how far it has come, to go on after it was stopped.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The folder.
    pub folder: PathBuf,
    /// What the result depends on, in words of the caller: one that differs is not gone on with.
    pub request: String,
}

/// The file of what was learned.
pub(crate) const LEARNED: &str = "learned.json";
/// How the files of the pruner network begin.
pub(crate) const PRUNER: &str = "pruner-";
/// The file of what was tried.
pub(crate) const TRIED: &str = "tried.json";
/// How often they are written.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);

#[derive(Serialize, Deserialize)]
struct File<T> {
    request: String,
    state: T,
}

impl Progress {
    /// Whether files in its folder are called so.
    #[must_use]
    pub fn is_own(name: &str) -> bool {
        [LEARNED, TRIED].contains(&name) || name.starts_with(PRUNER)
    }

    /// A file of the folder; nothing where there is none, or where it is damaged, which the
    /// observer hears of.
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

    /// Puts a file into the folder, whole or not at all.
    pub(crate) fn write<T: Serialize>(&self, name: &str, state: T) -> Result<()> {
        let file = File { request: self.request.clone(), state };
        Ok(write_sealed(&self.folder.join(name), &file)?)
    }
}

/// That a file, or what it has, cannot be used.
pub(crate) fn problem(path: &Path, problem: &impl ToString) -> Error {
    Error::Progress { path: path.to_owned(), problem: problem.to_string() }
}

/// Only whether to stop.
pub(crate) struct Quiet<'a>(pub(crate) &'a dyn Observer);

impl Observer for Quiet<'_> {
    fn advance(&self, _: usize) -> secateur_models::Result<()> {
        self.0.advance(0)
    }
}
