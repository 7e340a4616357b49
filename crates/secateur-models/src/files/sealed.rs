//! JSON files with a checksum, which a run writes for itself.

use crate::error::{Error, Result};
use crate::files::digest::digest;
use crate::files::read::{Limit, read_json};
use crate::files::write::write_atomically;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::path::Path;

/// The file: `content` as it stands there, and its digest.
#[derive(Serialize, Deserialize)]
struct Sealed {
    digest: String,
    content: Box<RawValue>,
}

/// Writes a value as JSON with a checksum, whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn write_sealed(path: &Path, value: &impl Serialize) -> Result<()> {
    let failed = |error| Error::invalid(path, error);
    let content = serde_json::value::to_raw_value(value).map_err(failed)?;
    let sealed = Sealed { digest: digest([content.get()]), content };
    write_atomically(path, &serde_json::to_vec(&sealed).map_err(failed)?)
}

/// Reads a file of [`write_sealed`].
///
/// # Errors
/// If the file cannot be read, or is not as it was written.
pub fn read_sealed<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let damaged =
        |problem: &dyn std::fmt::Display| Error::invalid(path, format!("is damaged: {problem}"));
    let Sealed { digest: expected, content } = read_json(path, Limit::Report)?;
    if digest([content.get()]) != expected {
        return Err(damaged(&"its checksum is another"));
    }
    serde_json::from_str(content.get()).map_err(|error| damaged(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sealed.json");
        let value = (vec![0.1 + 0.2, f64::MIN_POSITIVE], "a \"word\"\n".to_owned(), Some(7_u64));
        write_sealed(&path, &value).unwrap();
        assert_eq!(read_sealed::<(Vec<f64>, String, Option<u64>)>(&path).unwrap(), value);
        let bytes = std::fs::read(&path).unwrap();
        for place in 0..bytes.len() {
            for bit in 0..8 {
                let mut other = bytes.clone();
                other[place] ^= 1 << bit;
                std::fs::write(&path, &other).unwrap();
                // A space for a space is the only change that may pass.
                match read_sealed::<(Vec<f64>, String, Option<u64>)>(&path) {
                    Ok(read) => assert_eq!(read, value, "byte {place}, bit {bit}"),
                    Err(error) => assert!(error.to_string().contains("sealed.json"), "{error}"),
                }
            }
        }
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(
                read_sealed::<(Vec<f64>, String, Option<u64>)>(&path).is_err(),
                "{length} bytes"
            );
        }
    }
}
