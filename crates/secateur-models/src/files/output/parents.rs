//! The folders above an output.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Folders that were made to hold another; they go again if that never comes.
#[derive(Debug, Default)]
pub(super) struct Parents(Vec<PathBuf>);

impl Parents {
    pub(super) fn create(folder: &Path) -> Result<Self> {
        let missing = folder.ancestors().filter(|path| !path.as_os_str().is_empty());
        let missing = missing
            .take_while(|path| path.symlink_metadata().is_err())
            .map(Path::to_owned)
            .collect();
        let parents = Self(missing);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        Ok(parents)
    }

    pub(super) fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        // One that holds something by now stays.
        let _ = self.0.iter().try_for_each(std::fs::remove_dir);
    }
}
