//! Renames that replace nothing, and exchanges.

use std::io::{Error, ErrorKind, Result};
use std::path::Path;

/// Renames a file or folder. Fails with [`ErrorKind::AlreadyExists`] if anything is at `to`.
///
/// On Linux and macOS the system guarantees this. Elsewhere, and on file systems that cannot, `to`
/// is looked up first. Only an empty folder that appears between the look and the rename is
/// replaced.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(error) if is_unsupported(error) => {}
            done => return done.map_err(Error::from),
        }
    }
    match to.symlink_metadata() {
        Ok(_) => Err(ErrorKind::AlreadyExists.into()),
        Err(_) => std::fs::rename(from, to),
    }
}

/// Exchanges two folders at once. Returns false if the system cannot.
pub(crate) fn exchange(one: &Path, other: &Path) -> Result<bool> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE) {
            Err(error) if is_unsupported(error) => Ok(false),
            done => done.map(|()| true).map_err(Error::from),
        }
    }
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    {
        let _ = (one, other);
        Ok(false)
    }
}

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn is_unsupported(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP].contains(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["new", "empty"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("file"), "mine").unwrap();
        for there in ["empty", "file"] {
            assert_eq!(
                rename_new(&at("new"), &at(there)).unwrap_err().kind(),
                ErrorKind::AlreadyExists
            );
        }
        rename_new(&at("new"), &at("moved")).unwrap();
        std::fs::write(at("moved/a"), "a").unwrap();
        if exchange(&at("moved"), &at("empty")).unwrap() {
            assert!(at("empty/a").exists() && !at("moved/a").exists());
        }
    }
}
