//! Where other file systems are mounted.

use std::path::{Path, PathBuf};

/// The mount points at a folder or inside it, as far as the system tells: on Linux all, elsewhere
/// the folder itself where it is on another device than its parent.
pub(super) fn within(folder: &Path) -> Option<PathBuf> {
    match std::fs::read_to_string("/proc/self/mountinfo") {
        Ok(table) => {
            let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescaped);
            points.map(PathBuf::from).find(|point| point.starts_with(folder))
        }
        Err(_) => is_mount_point(folder).then(|| folder.to_owned()),
    }
}

/// Spaces and the like stand there in octal.
fn unescaped(field: &str) -> String {
    let mut text = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
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
    String::from_utf8_lossy(&text).into_owned()
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
        assert_eq!(super::unescaped(r"/mnt/a\040b\134c"), r"/mnt/a b\c");
    }
}
