//! Which folders `--force` may replace.

use super::tree;
use super::{Limit, digest_of_file, mounts, read_json, shown};
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

    /// Those that are model folders.
    fn models(&self) -> impl Iterator<Item = &Path> {
        self.given.iter().map(PathBuf::as_path).filter(|input| input.join("model_index.json").is_file())
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
        let overlaps = |place: &&PathBuf| {
            let by_name = folder.starts_with(place) || place.starts_with(folder);
            by_name
                || place.ancestors().any(|above| is_same(above, folder))
                || folder.ancestors().any(|above| is_same(above, place))
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

/// Whether two paths lead to one folder or file: by letters of either case, or mounted twice.
fn is_same(one: &Path, other: &Path) -> bool {
    identity(one).is_some_and(|found| Some(found) == identity(other))
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
    let current = std::env::current_dir().and_then(|current| current.canonicalize());
    if current.is_ok_and(|current| current.ancestors().any(|above| above == folder || is_same(above, folder))) {
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
const OF_A_MODEL: [&str; 3] = ["model_index.json", "secateur.json", "reuse.json"];
/// A file that is copied, and that is not called as weights are, is compared with its source where
/// it has no more bytes.
const COMPARED: u64 = 64 << 20;

/// The first entry, relative to the folder, that is none of what this program writes.
fn foreign(folder: &Path, inputs: &Inputs) -> Result<Option<PathBuf>> {
    let entries = tree::all(folder)?;
    let plain: Option<BTreeSet<&str>> =
        entries.iter().map(|entry| entry.path.to_str().filter(|_| entry.is_file)).collect();
    if let Some(names) = plain {
        let only = |known: &[&str]| names.iter().all(|name| known.contains(name));
        let are_pictures = names.iter().enumerate().all(|(number, name)| *name == picture(number));
        if are_pictures || (only(&STATISTICS) && is_statistics(folder)) || (only(&REPORT) && is_report(folder)) {
            return Ok(None);
        }
    }
    let Some(index) = index(folder) else {
        let pictures: BTreeSet<PathBuf> = (0..entries.len()).map(|number| picture(number).into()).collect();
        let place = entries.iter().position(|entry| !pictures.contains(&entry.path)).unwrap_or(0);
        return Ok(entries.into_iter().nth(place).map(|entry| entry.path));
    };
    let components = tree::components(&index);
    let listed = listed(folder);
    let known = |entry: &tree::Entry| {
        let path = &entry.path;
        let own = match (path.parent().and_then(Path::to_str), path.file_name().and_then(|name| name.to_str())) {
            (Some(""), Some(name)) if entry.is_file => {
                OF_A_MODEL.contains(&name) || (REPORT.contains(&name) && is_report(folder))
            }
            (Some(""), Some(name)) => components.contains(name),
            (Some(component), Some(name)) => {
                entry.is_file && components.contains(component) && tree::is_component_file(name)
            }
            _ => false,
        };
        let of_list = || match entry.is_file {
            true => listed.contains(path),
            false => listed.iter().any(|listed| listed.starts_with(path)),
        };
        // What a model holds beyond its components is copied with it.
        let copied = || inputs.models().any(|model| is_copy(&folder.join(path), &model.join(path)));
        own || of_list() || copied()
    };
    Ok(entries.into_iter().find(|entry| !known(entry)).map(|entry| entry.path))
}

/// The `model_index.json` of a pipeline, if that is what a folder holds.
fn index(folder: &Path) -> Option<Map<String, Value>> {
    let path = folder.join("model_index.json");
    let index = path.symlink_metadata().is_ok_and(|index| index.is_file()).then(|| read_json(&path, Limit::Config));
    let index: Map<String, Value> = index?.ok()?;
    let class = index.get("_class_name").and_then(Value::as_str);
    class.is_some_and(|class| class.ends_with("Pipeline")).then_some(index)
}

/// How the pictures that are made are called.
fn picture(number: usize) -> String {
    format!("{number:04}.png")
}

/// Whether a file is still the copy of another that it was made as, or a folder stands for a
/// folder.
fn is_copy(copy: &Path, source: &Path) -> bool {
    let (Ok(copied), Ok(found)) = (copy.symlink_metadata(), source.metadata()) else { return false };
    if copied.is_dir() || found.is_dir() {
        return copied.is_dir() && found.is_dir();
    }
    let alike = copied.is_file() && found.is_file() && copied.len() == found.len();
    let same =
        || matches!((digest_of_file(copy, &()), digest_of_file(source, &())), (Ok(one), Ok(other)) if one == other);
    alike && (tree::is_weights(source) || (found.len() <= COMPARED && same()))
}

fn is_statistics(folder: &Path) -> bool {
    let statistics = read_json::<Map<String, Value>>(&folder.join(STATISTICS[0]), Limit::Report).unwrap_or_default();
    // Those of earlier versions have no checksum around them.
    let content = statistics.get("content").and_then(Value::as_object).unwrap_or(&statistics);
    ["format_version", "fingerprint"].iter().all(|key| content.contains_key(*key))
}

fn is_report(folder: &Path) -> bool {
    let report = read_json::<Map<String, Value>>(&folder.join(REPORT[1]), Limit::Report);
    report.is_ok_and(|report| report.contains_key("secateur_version"))
}

/// The lists that the manifest of a model names.
fn listed(folder: &Path) -> Vec<PathBuf> {
    let manifest = read_json::<Map<String, Value>>(&folder.join("secateur.json"), Limit::Config).unwrap_or_default();
    let prompts = manifest.get("prompts").and_then(Value::as_object);
    let lists = prompts.into_iter().flat_map(Map::values).chain(manifest.get("captions")).chain(manifest.get("reuse"));
    lists.filter_map(Value::as_str).map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = r#"{"_class_name": "DiTPipeline", "vae": ["diffusers", "AutoencoderKL"]}"#;
    const REPORT: &str = r#"{"secateur_version": "0.1.0"}"#;
    const STATISTICS: &str = r#"{"sha256": "0", "content": {"format_version": 4, "fingerprint": {}}}"#;
    const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

    fn fill(folder: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    /// Each line is a folder, and the file of it that is somebody's, if one is.
    #[test]
    fn what_may_be_replaced() {
        let index = ("model_index.json", INDEX);
        let lists = r#"{"prompts": {"calibration": "prompts/a.txt", "held_out": "b.txt"}}"#;
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[], ""),
            (&[("0000.png", ""), ("0001.png", "")], ""),
            (&[("0000.png", ""), ("0002.png", "")], "0002.png"),
            (&[("20231225.png", "")], "20231225.png"),
            (&[("report.json", REPORT), ("report.html", "")], ""),
            (&[("report.json", "{}"), ("report.html", "")], "report.html"),
            (&[("report.html", "")], "report.html"),
            (&[("statistics.json", STATISTICS), ("statistics.safetensors", "")], ""),
            (&[("statistics.json", r#"{"format_version": 1, "fingerprint": {}}"#)], ""),
            (&[("statistics.json", "[1, 2]"), ("statistics.safetensors", "")], "statistics.json"),
            (&[("statistics.safetensors", "")], "statistics.safetensors"),
            (&[index, (VAE, ""), ("vae/config.json", ""), ("secateur.json", "{}"), ("report.json", REPORT)], ""),
            (&[("model_index.json", r#"{"x": ["a", "b"]}"#), ("x/best.pt", "")], "model_index.json"),
            (&[index, ("vae/best.pt", "")], "vae/best.pt"),
            (&[index, ("vae/best.safetensors", "")], "vae/best.safetensors"),
            (&[index, ("unet/config.json", "")], "unet"),
            (&[index, ("report.json", "{}")], "report.json"),
            (&[index, ("vae", "a file")], "vae"),
            (&[index, ("secateur.json", lists), ("prompts/a.txt", ""), ("b.txt", "")], ""),
            (&[index, ("secateur.json", lists), ("prompts/c.txt", "")], "prompts/c.txt"),
            // The model that is read has these.
            (&[index, ("README.md", "of the model"), ("extra/weights.bin", "01"), ("vae/old.ckpt", "")], ""),
            (&[index, ("README.md", "my notes")], "README.md"),
            (&[index, ("extra/weights.bin", "012")], "extra/weights.bin"),
            (&[index, ("extra", "a file")], "extra"),
            (&[index, ("README.md/notes", "")], "README.md"),
            // These are files of other things that are read.
            (&[index, ("thesis.txt", "")], "thesis.txt"),
        ];
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        let own = [index, ("README.md", "of the model"), ("extra/weights.bin", "01"), ("vae/old.ckpt", "")];
        fill(&at("model"), &own);
        fill(&at("clip"), &[("thesis.txt", "")]);
        let inputs = Inputs::new(&[&at("model"), &at("clip")]);
        for (number, (files, mine)) in cases.iter().enumerate() {
            let folder = at(&number.to_string());
            std::fs::create_dir(&folder).unwrap();
            fill(&folder, files);
            let found = check_replaceable(&folder, &inputs);
            match *mine {
                "" => found.unwrap_or_else(|error| panic!("{files:?}: {error}")),
                mine => {
                    let error = found.unwrap_err().to_string();
                    assert!(error.contains(&format!("it holds {mine}, which")), "{files:?}: {error}");
                }
            }
        }
    }
}
