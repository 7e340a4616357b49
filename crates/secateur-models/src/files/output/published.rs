//! What is recorded of a folder that is about to appear.

use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// The identity of a folder whatever its name: its inode number, if there is one, and its creation
/// time in nanoseconds since 1970.
pub(super) type Identity = (u64, u64);

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Published {
    pub(super) identity: Identity,
    /// The folder that the new one replaces.
    pub(super) replaced: Option<Identity>,
    /// Whether the replaced folder is an earlier output of the same run, from before it was
    /// stopped.
    pub(super) goes_on: bool,
    /// Everything that the output depends on, if known.
    pub(super) request: Option<String>,
    /// Digest of the record in it.
    pub(super) record: String,
    /// Whether the run is complete. Otherwise it was stopped and can be resumed, and the folder is
    /// its output so far.
    pub(super) complete: bool,
}

/// The identity of a folder that is there, if the system tells it.
pub(super) fn identity(folder: &Path) -> Option<Identity> {
    let found = folder.symlink_metadata().ok()?;
    let made = found.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let made = made.map_or(0, |time| time.as_nanos() as u64);
    #[cfg(unix)]
    let number = std::os::unix::fs::MetadataExt::ino(&found);
    #[cfg(not(unix))]
    let number = 0;
    ((number, made) != (0, 0)).then_some((number, made))
}
