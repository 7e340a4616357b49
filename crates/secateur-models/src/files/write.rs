//! Writing files whole or not at all.

use crate::error::{Error, Result, invalid};
use crate::files::read::open;
use crate::files::{names, tree};
use crate::observer::Observer;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

/// Writes a file beside `path` and renames it, so that nobody ever sees half of it. It is on the
/// disk when this returns.
///
/// # Errors
/// If the file cannot be written or replaced. The old file is then still there, unless only the
/// folder could not be written to the disk.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |file| file.write_all(bytes).map_err(Error::io(path)))
}

/// As [`write_atomically`], for content that is written piece by piece.
pub(crate) fn replace(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let temporary = path.with_file_name(format!(".{}.tmp", names::token()));
    let written = new_file(&temporary, fill)
        .map_err(|error| match error {
            Error::Io { source, .. } => Error::io(path)(source),
            other => other,
        })
        .and_then(|()| std::fs::rename(&temporary, path).map_err(Error::io(path)));
    if written.is_err() {
        // The first error counts; a file that was never made cannot be removed either.
        let _ = std::fs::remove_file(&temporary);
    }
    written.and_then(|()| sync_folder(path.parent().unwrap_or(Path::new("."))))
}

/// Makes a file, which is on the disk when this returns.
pub(crate) fn new_file(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let mut output = BufWriter::new(File::create_new(path).map_err(Error::io(path))?);
    fill(&mut output)?;
    let output = output.into_inner().map_err(|error| Error::io(path)(error.into_error()))?;
    output.sync_all().map_err(Error::io(path))
}

/// Copies the next `bytes` bytes of an open file. An error names the one of the two that it is of;
/// a file that has become shorter since its size was looked up is one.
pub(crate) fn copy(
    (from, input): (&Path, &mut File),
    bytes: u64,
    (to, output): (&Path, &mut impl Write),
    observer: &dyn Observer,
) -> Result<()> {
    let mut left = bytes;
    let mut buffer = vec![0; left.min(1 << 20) as usize];
    while left > 0 {
        observer.advance(0)?;
        let wanted = left.min(buffer.len() as u64) as usize;
        match input.read(&mut buffer[..wanted]) {
            Ok(0) => {
                invalid!(from, "was cut short while it was read: {left} bytes lack");
            }
            Ok(read) => {
                output.write_all(&buffer[..read]).map_err(Error::io(to))?;
                left -= read as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(from)(error)),
        }
    }
    Ok(())
}

/// Copies a file to a new one.
pub(crate) fn copy_file(from: &Path, to: &Path, observer: &dyn Observer) -> Result<()> {
    let mut input = open(from)?;
    let bytes = input.metadata().map_err(Error::io(from))?.len();
    new_file(to, |output| copy((from, &mut input), bytes, (to, output), observer))
}

/// Links the files of a folder into an existing folder, or copies them if the file system has no
/// links.
///
/// # Errors
/// If a file cannot be read, its name exists already, or the observer stops the work.
pub fn link_files(
    source: &Path,
    destination: &Path,
    wanted: impl Fn(&Path) -> bool,
    observer: &dyn Observer,
) -> Result<()> {
    let mut files = Vec::new();
    for entry in tree::all(source)?.into_iter().filter(|entry| wanted(&entry.path)) {
        let (from, to) = (source.join(&entry.path), destination.join(&entry.path));
        match from.is_dir() {
            true => std::fs::create_dir(&to).map_err(Error::io(&to))?,
            false => files.push((from, to)),
        }
    }
    for (from, to) in files {
        if std::fs::hard_link(&from, &to).is_err() {
            copy_file(&from, &to, observer)?;
        }
    }
    Ok(())
}

/// Puts the names in a folder and in all folders inside on the disk.
pub(crate) fn sync_folders(path: &Path) -> Result<()> {
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?;
        if entry.file_type().map_err(Error::io(path))?.is_dir() {
            sync_folders(&entry.path())?;
        }
    }
    sync_folder(path)
}

/// Puts the names in a folder on the disk.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    // A folder can be opened as a file where its names are not on the disk of themselves.
    if cfg!(unix) {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        match File::open(path).and_then(|folder| folder.sync_all()) {
            // Not every file system does that for folders.
            Err(error) if error.kind() != std::io::ErrorKind::InvalidInput => {
                return Err(Error::io(path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
