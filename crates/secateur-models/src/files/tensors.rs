//! Files of tensors that a run writes for itself, known by their SHA-256.

use super::{digest_of_file, names, write::sync_folder};
use crate::error::{Error, Result};
use candle_core::{Device, Tensor, safetensors};
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

/// Writes tensors as a safetensors file, whole or not at all, and returns its SHA-256.
///
/// # Errors
/// The file cannot be written; what was there before is then still there.
pub fn write_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<String> {
    let temporary = path.with_file_name(format!(".{}.tmp", names::token()));
    let written = safetensors::save(tensors, &temporary)
        .map_err(|error| Error::invalid(path, error))
        .and_then(|()| File::open(&temporary).and_then(|file| file.sync_all()).map_err(Error::io(path)))
        .and_then(|()| digest_of_file(&temporary))
        .and_then(|digest| std::fs::rename(&temporary, path).map(|()| digest).map_err(Error::io(path)));
    if written.is_err() {
        // The first error counts; a file that was never made cannot be removed either.
        let _ = std::fs::remove_file(&temporary);
    }
    let digest = written?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))?;
    Ok(digest)
}

/// Reads what [`write_tensors`] wrote.
///
/// # Errors
/// The file cannot be read, or is not the one with that SHA-256.
pub fn read_tensors(path: &Path, sha256: &str) -> Result<HashMap<String, Tensor>> {
    check_digest(path, sha256)?;
    safetensors::load(path, &Device::Cpu).map_err(|error| Error::invalid(path, error))
}

/// Fails if a file is not the one with that SHA-256.
///
/// # Errors
/// As told, or the file cannot be read.
pub fn check_digest(path: &Path, sha256: &str) -> Result<()> {
    match digest_of_file(path)? == sha256 {
        true => Ok(()),
        false => Err(Error::invalid(path, "is damaged, or another file in its place: its checksum is another")),
    }
}
