//! BLAKE3 digests, in hexadecimal.

use crate::error::{Error, Result};
use crate::files::read::open;
use crate::files::tree;
use crate::observer::Observer;
use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The digest of a sequence of bytes, which are added part by part.
#[derive(Debug, Default)]
pub(crate) struct Hash(blake3::Hasher);

/// Fewer bytes are not worth waking other threads for.
const FOR_THREADS: usize = 1 << 17;

impl Hash {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        match bytes.len() < FOR_THREADS {
            true => self.0.update(bytes),
            false => self.0.update_rayon(bytes),
        };
    }

    pub(crate) fn finish(self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// The digest of successive parts.
pub fn digest(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Hash::default();
    parts.into_iter().for_each(|part| hash.add(part.as_ref()));
    hash.finish()
}

/// The digest of texts, each with its length.
pub fn digest_of_texts(texts: &[String]) -> String {
    digest(
        texts
            .iter()
            .flat_map(|text| [text.len().to_le_bytes().to_vec(), text.clone().into_bytes()]),
    )
}

/// The digest of a file.
///
/// # Errors
/// If the file cannot be read, or the observer stops the work.
pub fn digest_of_file(path: &Path, observer: &dyn Observer) -> Result<String> {
    let mut hash = Hash::default();
    let mut file = open(path)?;
    let mut buffer = vec![0; 1 << 22];
    loop {
        observer.advance(0)?;
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finish()),
            Ok(read) => hash.add(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(path)(error)),
        }
    }
}

/// The digest of the names and contents of all files in a folder and the folders inside.
///
/// # Errors
/// If a file cannot be read or is no regular file, or the observer stops the work.
pub fn digest_of_folder(folder: &Path, observer: &dyn Observer) -> Result<String> {
    let mut files: Vec<_> = tree::all(folder)?.into_iter().map(|entry| entry.path).collect();
    files.retain(|path| !folder.join(path).is_dir());
    files.sort();
    digest_of_files(folder, &files, observer)
}

/// The digest of the names and contents of files of a folder, named relative to it.
///
/// # Errors
/// If a file cannot be read or is no regular file, or the observer stops the work.
pub fn digest_of_files(
    folder: &Path,
    files: &[PathBuf],
    observer: &dyn Observer,
) -> Result<String> {
    Digests::default().of(folder, files, observer)
}

/// The digest of files that were read, so that none is read twice.
#[derive(Debug, Default)]
pub(crate) struct Digests(Mutex<HashMap<PathBuf, String>>);

impl Digests {
    /// As [`digest_of_files`].
    pub(crate) fn of(
        &self,
        folder: &Path,
        files: &[PathBuf],
        observer: &dyn Observer,
    ) -> Result<String> {
        let mut hash = Hash::default();
        for file in files {
            hash.add(file.as_os_str().as_encoded_bytes());
            hash.add(&[0]);
            let path = folder.join(file);
            let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let found = known().get(&path).cloned();
            let digest = match found {
                Some(digest) => digest,
                None => {
                    let digest = digest_of_file(&path, observer)?;
                    known().insert(path, digest.clone());
                    digest
                }
            };
            hash.add(digest.as_bytes());
        }
        Ok(hash.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_told_apart() {
        let of = |texts: &[&str]| {
            digest_of_texts(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
        };
        let all = [
            of(&["a\nb", "c"]),
            of(&["a", "b\nc"]),
            of(&["a", "b", "c"]),
            of(&["abc"]),
            of(&["ab", "c"]),
            of(&[]),
        ];
        for (place, one) in all.iter().enumerate() {
            assert!(!all[..place].contains(one), "{place}");
        }
    }
}
