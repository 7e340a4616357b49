//! The place of an output: whether one may be made there.

use super::options::OutputOptions;
use crate::error::{Error, Result, invalid, shown};
use crate::files::names::LONGEST_NAME as LONGEST;
use crate::files::names::{is_hidden, work_name};
use crate::files::recognise::{Inputs, check_replaceable, nearest};
use crate::files::work::WorkFolder;
use std::ffi::OsStr;
use std::path::{Component, Path};

/// Checks that an output may be made at `target`, and returns its inputs.
///
/// # Errors
/// See [`OutputFolder::create`](super::OutputFolder::create).
pub(super) fn checked(
    target: &Path,
    options: OutputOptions<'_>,
    inputs: &[&Path],
) -> Result<Inputs> {
    let target = std::path::absolute(target).map_err(Error::io(target))?;
    let (parent, name) = split(&target)?;
    let inputs = Inputs::new(inputs)?;
    // The folders above it may have to be made.
    let there = nearest(parent);
    let missing = parent.strip_prefix(there).unwrap_or(Path::new("")).to_owned();
    if missing.components().any(|part| part == Component::ParentDir) {
        invalid!(
            &target,
            "has `..` behind a folder that is not in {}: leave both away",
            shown(there)
        );
    }
    missing.iter().try_for_each(|name| check_name(&target, name))?;
    let parent = there.canonicalize().map_err(Error::io(there))?;
    if !parent.is_dir() {
        invalid!(&target, "{} is not a folder", shown(there));
    }
    #[cfg(unix)]
    if rustix::fs::access(&parent, rustix::fs::Access::WRITE_OK).is_err() {
        invalid!(&target, "nothing can be written to {}", shown(&parent));
    }
    let target = parent.join(missing).join(name);
    inputs.check(&target)?;
    if let (Some(work), false) = (WorkFolder::around(&parent), options.part) {
        let problem = "lies in the work folder of another output, and would go with it";
        invalid!(&target, "{problem}: choose a place outside {}", shown(work));
    }
    let work = target.with_file_name(work_name(name));
    let there = WorkFolder::check_place(&work)?;
    match target.symlink_metadata().is_ok() {
        true if options.replace => check_replaceable(&target)?,
        true if !there && !options.resume => refuse_existing(&target)?,
        _ => {}
    }
    Ok(inputs)
}

/// Whether a folder that is made for an output may be called so.
fn check_name(target: &Path, name: &OsStr) -> Result<()> {
    if name.len() > LONGEST {
        invalid!(target, "a name in it has {} bytes: {LONGEST} are the most", name.len());
    }
    match is_hidden(name) {
        true => {
            invalid!(target, "has a name of secateur's own work folders: choose another")
        }
        false => Ok(()),
    }
}

/// The folder that an output is to be in, and its name.
pub(super) fn split(target: &Path) -> Result<(&Path, &OsStr)> {
    let name =
        target.file_name().ok_or_else(|| Error::invalid(target, "is not the name of a folder"))?;
    check_name(target, name)?;
    let parent =
        target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent, name))
}

pub(super) const EXISTS: &str = "exists already: choose another name, or `force` to replace it";

pub(super) fn refuse_existing(target: &Path) -> Result<()> {
    match target.symlink_metadata() {
        Ok(_) => Err(Error::invalid(target, EXISTS)),
        Err(_) => Ok(()),
    }
}

/// The bytes that may be written to the file system of a folder, where it tells.
pub fn free_space(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    return rustix::fs::statvfs(folder)
        .ok()
        .map(|found| found.f_bavail.saturating_mul(found.f_frsize));
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}
