//! The hidden folder beside an output that holds all work on it, and the lock on it.

use crate::error::{Error, Result, invalid, shown};
use crate::files::mounts;
use crate::files::names::{is_passing_name, passing_name, work_name};
use crate::files::read::{Limit, open, read_json};
use crate::files::rename::rename_new;
use crate::files::write::{new_file, sync_folder};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A folder `.NAME.secateur` beside an output NAME: ours by the marker in it, and one process's by
/// its lock. It is there as long as the work on the output lasts, and stays where a run can go on.
#[derive(Debug)]
pub(crate) struct WorkFolder {
    path: PathBuf,
    /// Name of the output.
    name: OsString,
    /// Held while this lives; `None` where the file system knows no locks.
    lock: Option<File>,
    /// Whether an earlier run left it.
    pub(crate) was_there: bool,
}

/// The file that marks a folder as ours.
const MARKER: &str = "secateur.json";
const LOCK: &str = "lock";

#[derive(Serialize, Deserialize)]
struct Marker {
    /// [`Marker::TEXT`].
    folder: String,
    format_version: u32,
}

impl Marker {
    const TEXT: &str =
        "work in progress of secateur, removed when it ends: with `resume` a run goes on with it";
    const VERSION: u32 = 1;
}

/// How a lock is opened: no link is followed, and no pipe waited for.
fn lock_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
        options.custom_flags(flags.bits().cast_signed());
    }
    options
}

/// Who holds a lock.
#[derive(Serialize, Deserialize)]
struct Holder {
    process: u32,
    command: String,
    /// Seconds since 1970.
    since: u64,
}

impl WorkFolder {
    /// Opens the folder of the output `name` in `parent`, or makes it.
    ///
    /// # Errors
    /// Another process has it, a folder of this name is not ours, or the file system refuses.
    pub(crate) fn open(parent: &Path, name: &OsStr) -> Result<Self> {
        let path = parent.join(work_name(name));
        remove_abandoned(parent, name);
        // Another process may make or remove the folder between two steps.
        for _ in 0..100 {
            match path.symlink_metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    if let Some(made) = Self::make(parent, name, &path)? {
                        return Ok(made);
                    }
                }
                Err(error) => return Err(Error::io(&path)(error)),
                Ok(_) => {
                    if let Some(found) = Self::take(&path, name)? {
                        return Ok(found);
                    }
                }
            }
        }
        invalid!(path, "other processes make and remove it again and again")
    }

    /// Makes a folder under a name that nobody knows, and gives it its own at last; `None` where
    /// another was faster.
    fn make(parent: &Path, name: &OsStr, path: &Path) -> Result<Option<Self>> {
        let passing = parent.join(passing_name(name));
        std::fs::create_dir(&passing).map_err(Error::io(&passing))?;
        let made = fill(&passing).and_then(|lock| {
            rename_new(&passing, path).map_err(Error::io(path))?;
            let made =
                Self { path: path.to_owned(), name: name.to_owned(), lock, was_there: false };
            match is_ours(path)
                && made.lock.as_ref().is_none_or(|lock| is_at(lock, &path.join(LOCK)))
            {
                true => Ok(made),
                false => {
                    // Somebody took it for abandoned a moment ago.
                    rename_new(path, &passing).map_err(Error::io(path))?;
                    Err(Error::io(path)(ErrorKind::WouldBlock.into()))
                }
            }
        });
        match made {
            Ok(made) => {
                // Without that a run may have to begin anew after the power fails.
                let _ = sync_folder(parent);
                Ok(Some(made))
            }
            Err(error) => {
                remove_contents(&passing);
                // Somebody made one, or took this one for abandoned.
                let faster = |source: &std::io::Error| {
                    [ErrorKind::AlreadyExists, ErrorKind::NotFound, ErrorKind::WouldBlock]
                        .contains(&source.kind())
                };
                match &error {
                    Error::Io { source, .. } if faster(source) => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }

    /// Takes a folder that is there; `None` where it went away just then.
    fn take(path: &Path, name: &OsStr) -> Result<Option<Self>> {
        if !is_ours(path) {
            if !path.exists() {
                return Ok(None);
            }
            return Err(not_ours(path));
        }
        let lock_path = path.join(LOCK);
        let lock = match lock_options().create(true).truncate(false).open(&lock_path) {
            Ok(lock)
                if lock.metadata().is_ok_and(|found| found.is_file() && has_one_name(&found)) =>
            {
                lock
            }
            Err(_) if !path.exists() => return Ok(None),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Err(Error::io(&lock_path)(error));
            }
            Ok(_) | Err(_) => {
                invalid!(
                    &lock_path,
                    "is not the lock that secateur made: remove it, or move its folder away"
                );
            }
        };
        let lock = match lock.try_lock() {
            Ok(()) if !is_at(&lock, &lock_path) => return Ok(None),
            Ok(()) => Some(lock),
            Err(TryLockError::WouldBlock) => return Err(held(path, name)),
            Err(TryLockError::Error(_)) => None,
        };
        if let Some(lock) = &lock {
            sign(lock, &lock_path)?;
        }
        Ok(Some(Self { path: path.to_owned(), name: name.to_owned(), lock, was_there: true }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails where another folder is in its place by now.
    pub(crate) fn check(&self) -> Result<()> {
        let own = is_ours(&self.path)
            && self.lock.as_ref().is_none_or(|lock| is_at(lock, &self.path.join(LOCK)));
        match own {
            true => Ok(()),
            false => {
                invalid!(
                    &self.path,
                    "is no longer the folder that this run made: it was moved, or \
                    another took its place"
                )
            }
        }
    }

    /// Whether one is there; an error where something else has its name.
    pub(crate) fn check_place(path: &Path) -> Result<bool> {
        match path.symlink_metadata() {
            Ok(_) if !is_ours(path) => Err(not_ours(path)),
            found => Ok(found.is_ok()),
        }
    }

    /// The work folder that a path lies in.
    pub(crate) fn around(path: &Path) -> Option<&Path> {
        path.ancestors().find(|above| is_ours(above))
    }

    /// Whether no other process can get at the output.
    pub(crate) fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// Removes something in it, whatever it is.
    pub(crate) fn remove_entry(&self, name: &str) -> Result<()> {
        self.check()?;
        let path = self.path.join(name);
        remove(&path)
    }

    /// Removes all but what makes it a work folder.
    pub(crate) fn clear(&self) -> Result<()> {
        self.check()?;
        for entry in std::fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let entry = entry.map_err(Error::io(&self.path))?;
            if entry.file_name() != MARKER && entry.file_name() != LOCK {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes it: the name is free at once, and what a process that is killed leaves of it is
    /// known as ours.
    ///
    /// # Errors
    /// Something cannot be removed; the next run tries again.
    pub(crate) fn remove(self) -> Result<()> {
        self.check()?;
        let passing = self.path.with_file_name(passing_name(&self.name));
        std::fs::rename(&self.path, &passing).map_err(Error::io(&self.path))?;
        match remove_contents(&passing) {
            true => Ok(()),
            false => invalid!(passing, "cannot be removed"),
        }
    }
}

/// Makes a new folder one of ours, and locks it.
fn fill(folder: &Path) -> Result<Option<File>> {
    let marker = Marker { folder: Marker::TEXT.into(), format_version: Marker::VERSION };
    let path = folder.join(MARKER);
    let text = serde_json::to_vec(&marker).map_err(|error| Error::invalid(&path, error))?;
    new_file(&path, |file| file.write_all(&text).map_err(Error::io(&path)))?;
    let path = folder.join(LOCK);
    let lock = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(Error::io(&path))?;
    match lock.try_lock() {
        Ok(()) if is_at(&lock, &path) => {
            sign(&lock, &path)?;
            Ok(Some(lock))
        }
        Ok(()) | Err(TryLockError::WouldBlock) => {
            Err(Error::io(folder)(ErrorKind::WouldBlock.into()))
        }
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// Writes who holds the lock.
fn sign(mut lock: &File, path: &Path) -> Result<()> {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let command = words.collect::<Vec<_>>().join(" ");
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let holder = Holder { process: std::process::id(), command, since };
    let text = serde_json::to_vec(&holder).map_err(|error| Error::invalid(path, error))?;
    lock.set_len(0).and_then(|()| lock.write_all(&text)).map_err(Error::io(path))
}

fn held(path: &Path, name: &OsStr) -> Error {
    let mut text = String::new();
    // Enough for any command line; where it cannot be read, nobody is named.
    let _ = open(&path.join(LOCK)).map(|lock| lock.take(1 << 20).read_to_string(&mut text));
    let by = match serde_json::from_str::<Holder>(&text) {
        Ok(Holder { process, command, since }) => {
            let now =
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(since, |time| time.as_secs());
            format!("process {process}, since {} s: {command}", now.saturating_sub(since))
        }
        Err(_) => "another process".into(),
    };
    let target = path.with_file_name(name);
    Error::invalid(target, format!("is being written by {by}; wait for it, or choose another name"))
}

/// Whether a file has no other names, under which somebody might keep something in it.
fn has_one_name(found: &std::fs::Metadata) -> bool {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::nlink(found) == 1;
    #[cfg(not(unix))]
    {
        let _ = found;
        true
    }
}

/// Whether an open file is still the one of that name.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        matches!((file.metadata().map(identity), path.metadata().map(identity)), (Ok(one),
            Ok(other)) if one == other)
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

fn not_ours(path: &Path) -> Error {
    let problem = "is not a folder that secateur made, and it needs this name for its work: move \
        it away, or choose \
                   another name for the output";
    Error::invalid(path, problem)
}

/// Whether a folder, and no link to one, has the marker.
fn is_ours(path: &Path) -> bool {
    let marker = || read_json::<Marker>(&path.join(MARKER), Limit::Recipe);
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
        && marker().is_ok_and(|marker| {
            marker.folder == Marker::TEXT && marker.format_version == Marker::VERSION
        })
}

/// Removes what killed processes left under passing names beside the output `name`.
fn remove_abandoned(parent: &Path, name: &OsStr) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let (found, path) = (entry.file_name(), entry.path());
        if !found.to_str().is_some_and(|found| is_passing_name(found, name)) {
            continue;
        }
        if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            continue;
        }
        let lock = lock_options().open(path.join(LOCK));
        let free = match &lock {
            Ok(lock) => !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        if free {
            // It is in nobody's way where that fails.
            let _ = remove_contents(&path);
        }
    }
}

/// Removes a folder under a passing name, the marker and the lock last.
fn remove_contents(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let inner: Vec<_> =
        entries.filter(|entry| entry.file_name() != MARKER && entry.file_name() != LOCK).collect();
    // Without a marker it was about to become ours, or about to go, and nothing else is in it.
    if !inner.is_empty() && !is_ours(folder)
        || inner.iter().any(|entry| remove(&entry.path()).is_err())
    {
        return false;
    }
    for name in [LOCK, MARKER] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    match std::fs::remove_dir(folder) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Removes a file, a link, or a folder with its content, if it exists.
///
/// # Errors
/// If it cannot be removed, or another file system is mounted in it.
pub fn remove(path: &Path) -> Result<()> {
    if let Some(point) = mounts::within(path) {
        invalid!(path, "another file system is mounted at {}", shown(&point));
    }
    let removed = match path.symlink_metadata() {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn one_process_has_it_and_nothing_stays() {
        let parent = tempfile::tempdir().unwrap();
        let open = || WorkFolder::open(parent.path(), "out".as_ref());
        let first = open().unwrap();
        assert!(!first.was_there && first.is_locked());
        assert_eq!(entries(parent.path()), [".out.secateur"]);
        let error = open().unwrap_err().to_string();
        let process = format!("process {}", std::process::id());
        assert!(error.contains("out: is being written by") && error.contains(&process), "{error}");
        WorkFolder::open(parent.path(), "other".as_ref()).unwrap().remove().unwrap();
        std::fs::write(first.path().join("a"), "a").unwrap();
        drop(first);
        let second = open().unwrap();
        assert!(second.was_there && second.path().join("a").exists());
        second.clear().unwrap();
        assert_eq!(entries(second.path()), ["lock", "secateur.json"]);
        second.remove().unwrap();
        assert!(entries(parent.path()).is_empty());
    }

    #[test]
    fn what_others_made_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        for mine in [".out.secateur", ".out.0123456789abcdef01234567.secateur", ".out.unfinished"] {
            std::fs::create_dir(at(mine)).unwrap();
            std::fs::write(at(mine).join("thesis"), "thesis").unwrap();
        }
        let error = WorkFolder::open(parent.path(), "out".as_ref()).unwrap_err().to_string();
        assert!(error.contains(".out.secateur: is not a folder that secateur made"), "{error}");
        // Only by name is it ours: what else is in it stays.
        let passing = at(&passing_name("out".as_ref()));
        std::fs::create_dir(&passing).unwrap();
        std::fs::write(passing.join("thesis"), "thesis").unwrap();
        let empty = at(&passing_name("out".as_ref()));
        std::fs::create_dir(&empty).unwrap();
        std::fs::rename(at(".out.secateur"), at("moved")).unwrap();
        WorkFolder::open(parent.path(), "out".as_ref()).unwrap().remove().unwrap();
        assert!(passing.join("thesis").exists() && !empty.exists());
        assert!(at(".out.0123456789abcdef01234567.secateur/thesis").exists());
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("moved"), at(".out.secateur")).unwrap();
            WorkFolder::open(parent.path(), "out".as_ref()).unwrap_err();
        }
        assert!(at("moved/thesis").exists());
    }
}
