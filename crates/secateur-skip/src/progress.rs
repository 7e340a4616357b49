//! What a run that is stopped leaves to go on with.

use crate::error::{Error, Result};
use secateur_eval::write_atomically;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
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
    /// Whether there is anything to go on with in a folder.
    #[must_use]
    pub fn exists(folder: &Path) -> bool {
        [LEARNED, TRIED].iter().any(|name| folder.join(name).is_file())
    }

    /// A file of the folder; nothing where there is none.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.folder.join(name);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(problem(&path, &error)),
        };
        let file: File<T> = serde_json::from_str(&text).map_err(|error| problem(&path, &error))?;
        if file.request != self.request {
            return Err(problem(&path, &format!("it is of another run: {}; now {}", file.request, self.request)));
        }
        Ok(Some(file.state))
    }

    /// Puts a file into the folder, whole or not at all.
    pub(crate) fn write<T: Serialize>(&self, name: &str, state: T) -> Result<()> {
        let path = self.folder.join(name);
        let file = File { request: self.request.clone(), state };
        let text = serde_json::to_string(&file).map_err(|error| problem(&path, &error))?;
        std::fs::create_dir_all(&self.folder).map_err(|error| problem(&self.folder, &error))?;
        Ok(write_atomically(&path, text.as_bytes())?)
    }
}

/// That a file, or what it has, cannot be used.
pub(crate) fn problem(path: &Path, problem: &impl ToString) -> Error {
    Error::Progress { path: path.to_owned(), problem: problem.to_string() }
}
