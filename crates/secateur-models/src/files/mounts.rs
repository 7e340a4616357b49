//! Where other file systems are mounted.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The mount points at a folder or inside it, as far as the system tells: on Linux all, elsewhere
/// the folder itself where it is on another device than its parent.
pub(crate) fn within(folder: &Path) -> Option<PathBuf> {
    match std::fs::read("/proc/self/mountinfo") {
        Ok(table) => {
            let lines = table.split(|byte| *byte == b'\n');
            let points =
                lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescaped);
            points.map(PathBuf::from).find(|point| point.starts_with(folder))
        }
        Err(_) => is_mount_point(folder).then(|| folder.to_owned()),
    }
}

/// Spaces and the like stand there in octal.
fn unescaped(field: &[u8]) -> OsString {
    let mut text = Vec::new();
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(byte);
                rest = &after[3..];
            }
            None => {
                text.push(first);
                rest = after;
            }
        }
    }
    #[cfg(unix)]
    {
        std::os::unix::ffi::OsStringExt::from_vec(text)
    }
    #[cfg(not(unix))]
    {
        String::from_utf8_lossy(&text).into_owned().into()
    }
}

#[cfg(unix)]
fn is_mount_point(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    folder.parent().is_some_and(|parent| device(parent) != device(folder))
}

#[cfg(not(unix))]
fn is_mount_point(_: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    #[test]
    fn octal_is_read() {
        assert_eq!(super::unescaped(br"/mnt/a\040b\134c"), r"/mnt/a b\c");
    }
}
