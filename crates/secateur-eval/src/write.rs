//! Puts a report on disk. A file appears whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::html::{PicturePair, html};
use crate::{Error, Report, Result};

impl Report {
    /// Writes `report.html` (one self-contained page, with `pictures`) and `report.json` into `folder`, which must
    /// exist. Older reports there are replaced.
    ///
    /// # Errors
    /// The folder does not exist, or a file cannot be written.
    pub fn write(&self, pictures: &[PicturePair], folder: &Path) -> Result<()> {
        if !folder.is_dir() {
            return Err(Error::NotAFolder { path: folder.to_owned() });
        }
        write_atomically(&folder.join("report.json"), self.to_json().as_bytes())?;
        write_atomically(&folder.join("report.html"), html(self, pictures).as_bytes())
    }
}

/// Writes a sibling temporary file and renames it to `path`, so that a reader never sees half a file.
///
/// # Errors
/// The file cannot be written or replaced.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |action| move |source| Error::Io { action, path: path.to_owned(), source };
    let temporary = temporary_path(path);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(failed("write"))
        .and_then(|()| fs::rename(&temporary, path).map_err(failed("replace")));
    if written.is_err() {
        // The first error is the one to report; a file that was never created cannot be removed either.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// `path` with a suffix of this process, in the same folder: a rename does not cross file systems.
fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    PathBuf::from(name)
}
