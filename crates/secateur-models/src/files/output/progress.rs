//! The folder of what a run finished.

use crate::error::{Result, invalid, shown};
use crate::observer::Observer;
use std::path::Path;

/// Everything that a run depends on. This file alone is no progress.
const RUN: &str = "run.json";

/// Whether a folder of progress holds any.
pub(super) fn has_progress(folder: &Path) -> bool {
    progress_names(folder).any(|name| name != RUN)
}

pub(super) fn progress_names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    // What was being written when a process was killed.
    names.filter(|name| !name.ends_with(".tmp"))
}

/// Removes links, pipes and empty folders in the progress that have the name of a file. The
/// file is made again.
pub(super) fn clear_misplaced(folder: &Path, observer: &dyn Observer) -> Result<()> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let called = |path: &Path| {
        let endings = ["json", "safetensors", "tensors"];
        path.extension().is_some_and(|ending| endings.iter().any(|own| ending == *own))
    };
    for path in entries.map(|entry| entry.path()).filter(|path| called(path)) {
        let removed = match path.symlink_metadata() {
            Ok(found) if found.is_file() => continue,
            // One that holds something is somebody's.
            Ok(found) if found.is_dir() => std::fs::remove_dir(&path),
            _ => std::fs::remove_file(&path),
        };
        if removed.is_err() {
            invalid!(path, "is where secateur keeps a file: move it away");
        }
        observer.say(&format!("{}: was no file, and is made again", shown(&path)));
    }
    Ok(())
}
