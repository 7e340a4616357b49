//! Which folders `--force` may replace.

use super::tree::{self, is_model_file};
use super::{Limit, mounts, read_json, shown};
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// What a run reads, with all that links in it lead to.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    /// As they were given.
    given: Vec<PathBuf>,
    /// The files and folders that these are, resolved, and the places of the links on the way.
    places: Vec<PathBuf>,
}

/// More links than any path has: what has more goes round in a circle.
const MOST_LINKS: usize = 40;

impl Inputs {
    pub(super) fn new(given: &[&Path]) -> Self {
        let mut inputs = Self { given: given.iter().map(|path| path.to_path_buf()).collect(), places: Vec::new() };
        for path in given {
            inputs.add(path);
            for link in tree::links(path) {
                inputs.add(&link);
            }
        }
        inputs
    }

    /// The same, as they are now.
    pub(super) fn again(&self) -> Self {
        Self::new(&self.given.iter().map(PathBuf::as_path).collect::<Vec<_>>())
    }

    /// A path, each link that it is, and where they lead.
    fn add(&mut self, path: &Path) {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            let Some(place) = placed(&path) else { break };
            let next = std::fs::read_link(&place).ok();
            let next = next.map(|target| place.parent().unwrap_or(Path::new("/")).join(target));
            self.places.push(place);
            match next {
                Some(next) => path = next,
                None => break,
            }
        }
    }

    /// Fails where `folder` holds one of them, or lies in one.
    pub(super) fn check(&self, folder: &Path) -> Result<()> {
        // One folder may have two paths: by letters of either case, or mounted twice.
        let same = |one: &Path, other: &Path| identity(one).is_some_and(|found| Some(found) == identity(other));
        let overlaps = |place: &&PathBuf| {
            let by_name = folder.starts_with(place) || place.starts_with(folder);
            by_name || place.ancestors().any(|above| same(above, folder)) || folder.ancestors().any(|a| same(a, place))
        };
        match self.places.iter().find(overlaps) {
            Some(place) => Err(Error::invalid(
                folder,
                format!("the output folder and {} overlap: choose another --out", shown(place)),
            )),
            None => Ok(()),
        }
    }
}

/// A folder or file, whatever its path, where the system tells.
fn identity(path: &Path) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        path.symlink_metadata().ok().map(|found| (found.dev(), found.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// A path with all links but the last resolved.
fn placed(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    match (absolute.parent(), absolute.file_name()) {
        // What ends in `..` is no link.
        (Some(parent), Some(name)) if absolute.components().next_back() != Some(Component::ParentDir) => {
            Some(parent.canonicalize().ok()?.join(name))
        }
        _ => absolute.canonicalize().ok(),
    }
}

/// Fails unless `folder` may be replaced: it holds nothing but what this program writes, no other
/// file system, and not the current folder.
pub(super) fn check_replaceable(folder: &Path, inputs: &Inputs) -> Result<()> {
    let refuse = |problem: String| Err(Error::invalid(folder, format!("is not replaced: {problem}")));
    let kind = folder.symlink_metadata().map_err(Error::io(folder))?.file_type();
    if kind.is_symlink() {
        return refuse("it is a link; give the folder that it leads to".into());
    }
    if !kind.is_dir() {
        return refuse("it is not a folder".into());
    }
    if let Some(point) = mounts::within(folder) {
        return refuse(match point == folder {
            true => "it is a mount point; give a folder inside it".into(),
            false => format!("another file system is mounted at {}", shown(&point)),
        });
    }
    if std::env::current_dir().and_then(|current| current.canonicalize()).is_ok_and(|now| now.starts_with(folder)) {
        return refuse("the current folder is in it".into());
    }
    match foreign(folder, inputs)? {
        None => Ok(()),
        Some(found) => refuse(format!(
            "it holds {}, which secateur does not write: --force replaces a model, a report, pictures or statistics \
             alone; move the folder away, or choose another name",
            shown(&found)
        )),
    }
}

const REPORT: [&str; 2] = ["report.html", "report.json"];
const STATISTICS: [&str; 2] = ["statistics.json", "statistics.safetensors"];
/// What lies in model folders beside their components.
const OF_A_MODEL: [&str; 7] =
    ["model_index.json", "secateur.json", "reuse.json", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"];

/// The first entry, relative to the folder, that is none of what this program writes.
fn foreign(folder: &Path, inputs: &Inputs) -> Result<Option<PathBuf>> {
    let entries = tree::all(folder)?;
    let plain: Option<BTreeSet<&str>> =
        entries.iter().map(|entry| entry.path.to_str().filter(|_| entry.is_file)).collect();
    if let Some(names) = plain {
        let only = |known: &[&str]| names.iter().all(|name| known.contains(name));
        if names.iter().all(|name| is_picture(name)) || only(&STATISTICS) || (only(&REPORT) && is_report(folder)) {
            return Ok(None);
        }
    }
    let index = folder.join("model_index.json");
    if !index.symlink_metadata().is_ok_and(|index| index.is_file()) {
        let other = |entry: &tree::Entry| !entry.path.to_str().is_some_and(is_picture);
        let place = entries.iter().position(other).unwrap_or(0);
        return Ok(entries.into_iter().nth(place).map(|entry| entry.path));
    }
    let components = tree::components(&read_json::<Map<String, Value>>(&index, Limit::Config)?);
    let listed = listed(folder);
    let known = |entry: &tree::Entry| {
        let path = &entry.path;
        let own = match (path.parent().and_then(Path::to_str), path.file_name().and_then(|name| name.to_str())) {
            (Some(""), Some(name)) if entry.is_file => OF_A_MODEL.contains(&name) || REPORT.contains(&name),
            (Some(""), Some(name)) => components.contains(name),
            (Some(component), Some(name)) => {
                entry.is_file && components.contains(component) && is_model_file(name.as_ref())
            }
            _ => false,
        };
        let of_list = || listed.iter().any(|listed| listed.starts_with(path));
        // What a model holds beyond its components is copied with it.
        let copied = || inputs.given.iter().any(|input| input.join(path).exists());
        own || of_list() || copied()
    };
    Ok(entries.into_iter().find(|entry| !known(entry)).map(|entry| entry.path))
}

fn is_picture(name: &str) -> bool {
    name.strip_suffix(".png").is_some_and(|number| number.len() >= 4 && number.bytes().all(|b| b.is_ascii_digit()))
}

fn is_report(folder: &Path) -> bool {
    let report = read_json::<Map<String, Value>>(&folder.join("report.json"), Limit::Report);
    report.is_ok_and(|report| report.contains_key("secateur_version"))
}

/// The lists that the manifest of a model names.
fn listed(folder: &Path) -> Vec<PathBuf> {
    let manifest = read_json::<Map<String, Value>>(&folder.join("secateur.json"), Limit::Config).unwrap_or_default();
    let prompts = manifest.get("prompts").and_then(Value::as_object);
    let lists = prompts.into_iter().flat_map(Map::values).chain(manifest.get("captions")).chain(manifest.get("reuse"));
    lists.filter_map(Value::as_str).map(PathBuf::from).collect()
}
