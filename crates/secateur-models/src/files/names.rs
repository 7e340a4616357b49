//! Names of files: how hidden ones prove that they are ours.

use crate::files::digest::digest;
use std::hash::{BuildHasher, Hasher, RandomState};

/// The most bytes that file systems allow for a name.
pub(crate) const LONGEST_NAME: usize = 255;

/// How hidden folders end.
const ENDING: &str = ".secateur";

/// Names longer than this are cut, so that more can be added.
const LONGEST: usize = 180;

/// The beginning of all hidden names beside a folder called `name`.
fn stem(name: &std::ffi::OsStr) -> String {
    match name.to_str() {
        Some(text) if text.len() <= LONGEST && !is_cut(text) => format!(".{text}"),
        _ => {
            let start: String = name.to_string_lossy().chars().take(LONGEST / 4).collect();
            format!(".{start}-{}", &digest([name.as_encoded_bytes()])[..16])
        }
    }
}

/// Whether a name ends as those do that were cut: it is cut itself, or two would be the same.
fn is_cut(name: &str) -> bool {
    let ending = |separator: char| name.rsplit_once(separator).map_or("", |(_, ending)| ending);
    let digits = ending('-');
    // Nor is a work folder's name a passing one of another output.
    (digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        || is_token(ending('.'))
}

/// Whether a folder would be called as work folders are.
pub(crate) fn is_hidden(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with('.') && name.ends_with(ENDING)
}

/// The name of the folder that holds all work on an output called `name`.
pub(crate) fn work_name(name: &std::ffi::OsStr) -> String {
    format!("{}{ENDING}", stem(name))
}

/// A name that nobody can guess, and that proves by itself to be ours.
pub(crate) fn passing_name(name: &std::ffi::OsStr) -> String {
    format!("{}.{}{ENDING}", stem(name), token())
}

/// Whether `found` is a [`passing_name`] of `name`.
pub(crate) fn is_passing_name(found: &str, name: &std::ffi::OsStr) -> bool {
    let token = found.strip_prefix(&stem(name)).and_then(|rest| rest.strip_prefix('.'));
    token.and_then(|rest| rest.strip_suffix(ENDING)).is_some_and(is_token)
}

/// Sixteen random digits, and eight that follow from them.
pub(crate) fn token() -> String {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    let random = format!("{:016x}", hasher.finish());
    format!("{random}{}", check(&random))
}

fn is_token(text: &str) -> bool {
    text.is_ascii() && text.len() == 24 && check(&text[..16]) == text[16..]
}

fn check(random: &str) -> String {
    digest(["secateur", random])[..8].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_prove_whose_they_are() {
        for name in ["out", "a.b", "ünder", &"x".repeat(255)] {
            let name = name.as_ref();
            let passing = passing_name(name);
            assert!(
                is_passing_name(&passing, name)
                    && passing.len() <= 255
                    && work_name(name).len() <= 255,
                "{passing}"
            );
            assert!(!is_passing_name(&passing, "other".as_ref()));
            assert!(!is_passing_name(&work_name(name), name));
            assert_ne!(passing, passing_name(name));
        }
        let long = "x".repeat(255);
        let (long, cut) = (long.as_ref(), stem(long.as_ref()));
        assert_ne!(stem(cut[1..].as_ref()), cut);
        assert_ne!(work_name(long), work_name(cut[1..].as_ref()));
        let token = format!("out.{}", token());
        assert!(!is_passing_name(&work_name(token.as_ref()), "out".as_ref()), "{token}");
        for mine in [
            ".out.0123456789abcdef01234567.secateur",
            ".out.unfinished",
            ".out..secateur",
            ".out.é.secateur",
        ] {
            assert!(!is_passing_name(mine, "out".as_ref()), "{mine}");
        }
    }
}
