//! The files of a model folder, and which links in it are followed.
//!
//! A link is followed if it leads to a regular file in one step. That file must lie in the model
//! folder, or in the blobs of the hub's cache that the folder is a snapshot of, or the link must
//! have the name of a model's file. A component's folder may be a link to a folder elsewhere.
//! Nothing else is read or copied.

use crate::error::{Error, Result, invalid, shown};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

/// More entries, or deeper ones, than a model folder has: somebody's home, or a circle of mounts.
const MOST_ENTRIES: usize = 100_000;
const DEEPEST: usize = 16;
/// The largest file that is copied without being weights.
const LARGEST: u64 = 1 << 30;

/// A file, link or folder in a folder.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Relative to the folder.
    pub(crate) path: PathBuf,
    /// A regular file, and no link to one.
    pub(crate) is_file: bool,
}

/// The content of a model folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    /// Folders, each after the one that holds it, relative to the model's.
    pub(crate) folders: Vec<PathBuf>,
    /// Files that are read or copied, relative to the model's folder.
    pub(crate) files: Vec<PathBuf>,
    /// Links that are not followed, likewise.
    pub(crate) links: Vec<PathBuf>,
    /// Why files cannot be copied.
    problems: Vec<String>,
}

/// The names of the components in a `model_index.json`.
pub(crate) fn components(index: &Map<String, Value>) -> BTreeSet<String> {
    let plain = |name: &str| Path::new(name).components().eq([Component::Normal(name.as_ref())]);
    index
        .iter()
        .filter(|(name, value)| value.is_array() && plain(name))
        .map(|(name, _)| name.clone())
        .collect()
}

impl Tree {
    /// Walks the folder of a model with these components; hidden entries are left out.
    ///
    /// # Errors
    /// A folder cannot be read, or holds what cannot be copied.
    pub(crate) fn of(root: &Path, components: &BTreeSet<String>) -> Result<Self> {
        let real = root.canonicalize().map_err(Error::io(root))?;
        let mut tree = Self::default();
        tree.walk(root, &real, Path::new(""), components)?;
        Ok(tree)
    }

    fn walk(
        &mut self,
        root: &Path,
        real: &Path,
        inside: &Path,
        components: &BTreeSet<String>,
    ) -> Result<()> {
        let top = inside.as_os_str().is_empty();
        for name in names(&root.join(inside))? {
            let (path, place) = (inside.join(&name), root.join(inside).join(&name));
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            if self.files.len() + self.folders.len() > MOST_ENTRIES
                || path.components().count() > DEEPEST
            {
                invalid!(root, "holds more, or deeper, folders than a model does");
            }
            let kind = place.symlink_metadata().map_err(Error::io(&place))?.file_type();
            if kind.is_dir() {
                self.folders.push(path.clone());
                self.walk(root, real, &path, components)?;
            } else if kind.is_symlink() {
                let component = top && name.to_str().is_some_and(|name| components.contains(name));
                if component && place.is_dir() {
                    self.linked_component(root, &path)?;
                } else if is_followed(&place, real)? {
                    self.file(&place, path);
                } else {
                    self.links.push(path);
                }
            } else {
                self.file(&place, path);
            }
        }
        Ok(())
    }

    /// Walks a component that is a link to a folder elsewhere, where only files with the names
    /// of a model's are read.
    fn linked_component(&mut self, root: &Path, path: &Path) -> Result<()> {
        let folder = root.join(path);
        let real = folder.canonicalize().map_err(Error::io(&folder))?;
        self.folders.push(path.to_owned());
        for name in names(&folder)? {
            let place = folder.join(&name);
            let kind = place.symlink_metadata().map_err(Error::io(&place))?.file_type();
            match is_model_file(&name) && (!kind.is_symlink() || is_followed(&place, &real)?) {
                true => self.file(&place, path.join(&name)),
                false => self.links.push(path.join(&name)),
            }
        }
        Ok(())
    }

    /// What cannot be copied is no hindrance to those who only read the model.
    fn file(&mut self, place: &Path, path: PathBuf) {
        let problem = match crate::files::open(place)
            .and_then(|file| file.metadata().map_err(Error::io(place)))
        {
            Ok(found) if found.len() > LARGEST && !is_weights(place) => {
                let problem = format!(
                    "has {} bytes: of the files of a model only weights may be as large",
                    found.len()
                );
                Some(Error::invalid(place, problem).to_string())
            }
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        self.problems.extend(problem);
        self.files.push(path);
    }

    /// Fails where a file cannot be copied.
    pub(crate) fn check(&self) -> Result<()> {
        self.problems.first().map_or(Ok(()), |problem| Err(Error::Folder(problem.clone())))
    }

    /// The files without the weights of `components`, and without checkpoints of the whole pipeline
    /// in one file: where those components change, both, in whatever variant, would still be the
    /// model as it was.
    pub(crate) fn without(&self, components: &[&str]) -> impl Iterator<Item = &Path> {
        let old = |file: &Path| {
            let top = file.parent() == Some(Path::new(""));
            is_weights(file)
                && (top || components.iter().any(|component| file.starts_with(component)))
        };
        self.files.iter().map(PathBuf::as_path).filter(move |file| !old(file))
    }
}

/// Whether a link is followed; an error where it is called as a model's file and cannot be.
fn is_followed(link: &Path, root: &Path) -> Result<bool> {
    let target = std::fs::read_link(link).map_err(Error::io(link))?;
    let target = link.parent().unwrap_or(Path::new("/")).join(target);
    let known = link.file_name().is_some_and(is_model_file);
    let regular = target.symlink_metadata().is_ok_and(|target| target.is_file());
    match target.canonicalize() {
        Ok(real) if regular => Ok(known || real.starts_with(root) || is_blob(root, &real)),
        _ if known => {
            invalid!(link, "is a link to {}, which is not a regular file itself", shown(&target))
        }
        _ => Ok(false),
    }
}

/// Whether a file is one of the blobs that the snapshots of a repository in the hub's cache link
/// to.
fn is_blob(snapshot: &Path, file: &Path) -> bool {
    let repository = snapshot
        .parent()
        .filter(|snapshots| snapshots.ends_with("snapshots"))
        .and_then(Path::parent);
    repository.is_some_and(|repository| file.parent() == Some(&repository.join("blobs")))
}

/// Whether a name leads to nothing outside the folder that it is taken relative to.
pub(crate) fn is_inside(named: &Path) -> bool {
    !named.as_os_str().is_empty()
        && named.components().all(|part| matches!(part, Component::Normal(_)))
}

/// Where a file that a model names is: inside its folder, links followed.
///
/// # Errors
/// The name leads out of the folder, or the file is not there.
pub(crate) fn inside(root: &Path, named: &Path) -> Result<PathBuf> {
    let path = root.join(named);
    if !is_inside(named) {
        invalid!(
            root,
            "names {}, which is not the name of a file inside the model folder",
            shown(named)
        );
    }
    let (folder, file) = (
        root.canonicalize().map_err(Error::io(root))?,
        path.canonicalize().map_err(Error::io(&path))?,
    );
    if !file.starts_with(&folder) && !is_blob(&folder, &file) {
        invalid!(path, "is a link that leads out of the model folder, and is not followed");
    }
    Ok(path)
}

/// Whether files of components are called so.
pub(crate) fn is_model_file(name: &OsStr) -> bool {
    const NAMES: [&str; 14] = [
        "model_index.json",
        "secateur.json",
        "reuse.json",
        "config.json",
        "generation_config.json",
        "scheduler_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "spiece.model",
    ];
    let Some(name) = name.to_str() else { return false };
    NAMES.contains(&name) || is_weights(Path::new(name))
}

/// Whether a file describes a component: its configuration, or its vocabulary.
pub(crate) fn is_description(path: &Path) -> bool {
    path.file_name().is_some_and(is_model_file) && !is_weights(path)
}

/// Whether a file holds weights, or tells which files do.
pub(crate) fn is_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = name.rsplit('.').next().unwrap_or_default();
    let weights =
        ["safetensors", "bin", "ckpt", "pt", "pth", "msgpack", "onnx", "onnx_data", "gguf", "h5"];
    weights.contains(&ending) || (name.contains(".index") && ending == "json")
}

/// The content of a folder, without following links.
pub(crate) fn all(folder: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut left = vec![PathBuf::new()];
    while let Some(inside) = left.pop() {
        for name in names(&folder.join(&inside))? {
            let path = inside.join(name);
            let place = folder.join(&path);
            let kind = place.symlink_metadata().map_err(Error::io(&place))?.file_type();
            if kind.is_dir() {
                left.push(path.clone());
            }
            entries.push(Entry { path, is_file: kind.is_file() });
            if entries.len() > MOST_ENTRIES {
                invalid!(folder, "holds more files than any model does");
            }
        }
    }
    Ok(entries)
}

/// The names in a folder, in order.
fn names(folder: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let entries = entries.take(MOST_ENTRIES + 1).map(|entry| entry.map(|entry| entry.file_name()));
    let mut names = entries.collect::<std::io::Result<Vec<_>>>().map_err(Error::io(folder))?;
    names.sort();
    Ok(names)
}
