//! Runs that were stopped.

use crate::progress::say;
use anyhow::{Result, bail};
use secateur_prune::{Journal, Run};
use secateur_skip::Progress;
use std::path::{Path, PathBuf};

/// The folder beside the output that has what a run finished until it ends. A run that fails or is stopped leaves it there,
/// if it finished anything.
pub(super) struct Unfinished {
    pub(super) folder: PathBuf,
    resume: bool,
}

impl Unfinished {
    /// For the output folder `target`. One that is there is continued with `resume`, and thrown away with `force`.
    pub(super) fn check(target: &Path, resume: bool, force: bool) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let folder = target.with_file_name(format!(".{name}.unfinished"));
        match (folder.is_dir(), resume) {
            (false, true) => bail!("nothing to resume: there is no unfinished run for {}", target.display()),
            (true, false) if !force => {
                bail!("a run for {} was not finished: --resume goes on with it, --force begins anew", target.display())
            }
            (true, false) => std::fs::remove_dir_all(&folder)?,
            _ => {}
        }
        Ok(Self { folder, resume })
    }

    pub(super) fn journal(&self, run: &Run) -> Result<Journal> {
        Ok(if self.resume { Journal::open(&self.folder, run)? } else { Journal::create(&self.folder, run)? })
    }

    pub(super) fn remove(&self) -> Result<()> {
        // A short one may have had nothing to keep.
        if self.folder.is_dir() { Ok(std::fs::remove_dir_all(&self.folder)?) } else { Ok(()) }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.folder.is_dir() {
            return;
        }
        // A new run that came to nothing leaves nothing to go on with.
        match self.resume || Journal::has_progress(&self.folder) || Progress::exists(&self.folder) {
            true => say("what was finished is kept: --resume goes on with it"),
            false => drop(std::fs::remove_dir_all(&self.folder)),
        }
    }
}
