//! Which folders `--force` may replace: those that hold only files of an earlier run, unchanged.

use crate::error::{Error, Result, invalid, shown};
use crate::files::read::{Limit, read_json};
use crate::files::sealed::{read_sealed, write_sealed};
use crate::files::{mounts, tree};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The files and folders that a run reads, and all that links in them lead to.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    /// The paths as they were given.
    given: Vec<PathBuf>,
    /// The files and folders that these are, resolved, and the places of the links on the way.
    places: Vec<PathBuf>,
}

/// More links than any path has: what has more goes round in a circle.
const MOST_LINKS: usize = 40;

impl Inputs {
    pub(crate) fn new(given: &[&Path]) -> Result<Self> {
        let mut inputs = Self {
            given: given.iter().map(|path| path.to_path_buf()).collect(),
            places: Vec::new(),
        };
        for path in given {
            inputs.add(path);
            for link in links(path)? {
                inputs.add(&link);
            }
        }
        Ok(inputs)
    }

    /// Resolves the paths anew.
    pub(crate) fn again(&self) -> Result<Self> {
        Self::new(&self.given.iter().map(PathBuf::as_path).collect::<Vec<_>>())
    }

    /// Adds a path, each link on its way, and the end of the way.
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

    /// Fails if `folder` holds an input, or lies in one.
    pub(crate) fn check(&self, folder: &Path) -> Result<()> {
        let overlaps = |place: &&PathBuf| {
            let by_name = folder.starts_with(place) || place.starts_with(folder);
            by_name
                || place.ancestors().any(|above| is_same(above, folder))
                || folder.ancestors().any(|above| is_same(above, place))
        };
        match self.places.iter().find(overlaps) {
            Some(place) => invalid!(
                folder,
                "the output folder and {} overlap: choose another `out`",
                shown(place)
            ),
            None => Ok(()),
        }
    }
}

/// The links in a folder that lead to files or, in a model folder, to components, and those in the
/// components.
fn links(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut links = Vec::new();
    if !folder.is_dir() {
        return Ok(links);
    }
    let index = read_json::<Map<String, Value>>(&folder.join("model_index.json"), Limit::Config)
        .unwrap_or_default();
    let components = tree::components(&index).into_iter().map(|name| folder.join(name));
    links.extend(components.filter(|component| component.is_symlink()));
    let linked: Vec<PathBuf> =
        links.iter().filter(|component| component.is_dir()).cloned().collect();
    for folder in linked.into_iter().chain([folder.to_owned()]) {
        let inside = tree::all(&folder)?.into_iter().map(|entry| folder.join(entry.path));
        links.extend(inside.filter(|path| path.is_symlink() && path.is_file()));
    }
    Ok(links)
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

/// The nearest folder that is there: an absolute path itself, or one above it.
pub(crate) fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|above| above.symlink_metadata().is_ok()).unwrap_or(Path::new("/"))
}

/// A path with all links but the last resolved; the end of it may not be there.
fn placed(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    // What ends in `..` is no link.
    let Some((parent, name)) = absolute.parent().zip(absolute.file_name()) else {
        return absolute.canonicalize().ok();
    };
    let there = nearest(parent);
    Some(there.canonicalize().ok()?.join(parent.strip_prefix(there).ok()?).join(name))
}

/// The file in every output that says what else is in it.
pub(crate) const RECORD: &str = ".secateur.json";

/// The content of an output, without the record itself.
#[derive(Serialize, Deserialize)]
struct Record {
    /// [`Record::TEXT`].
    folder: String,
    format_version: u32,
    /// The files, by their path with `/` between folders.
    files: BTreeMap<String, Written>,
    folders: Vec<String>,
}

/// The size and time of a file when it was written.
#[derive(PartialEq, Serialize, Deserialize)]
struct Written {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: u64,
}

impl Record {
    const TEXT: &str =
        "written by secateur: `force` replaces this folder as long as it holds nothing else";
    const VERSION: u32 = 1;

    /// The record of a folder's current content, without links.
    fn of(folder: &Path) -> Result<Self> {
        let mut record = Self {
            folder: Self::TEXT.into(),
            format_version: Self::VERSION,
            files: BTreeMap::new(),
            folders: Vec::new(),
        };
        for tree::Entry { path, is_file } in tree::all(folder)? {
            let place = folder.join(&path);
            if is_file && path != Path::new(RECORD) {
                record.files.insert(spelled(&path), Written::of(&place)?);
            } else if !is_file && !place.is_symlink() {
                record.folders.push(spelled(&path));
            }
        }
        record.folders.sort();
        Ok(record)
    }
}

impl Written {
    fn of(file: &Path) -> Result<Self> {
        let found = file.symlink_metadata().map_err(Error::io(file))?;
        let modified = found.modified().map_err(Error::io(file))?;
        let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        Ok(Self { bytes: found.len(), modified })
    }
}

/// Spells a path for a record. Different paths are spelled differently: a part that is no text gets
/// a character that no name has.
fn spelled(path: &Path) -> String {
    let spelled = |part: &OsStr| match part.to_str() {
        Some(part) => part.to_owned(),
        None => format!("\0{}", part.as_encoded_bytes().escape_ascii()),
    };
    path.iter().map(spelled).collect::<Vec<_>>().join("/")
}

/// Writes the record of a folder into it.
pub(crate) fn write_record(folder: &Path) -> Result<()> {
    write_sealed(&folder.join(RECORD), &Record::of(folder)?)
}

/// Checks that `folder` may be replaced: it is as it was written, holds no other file system, and
/// is not the current folder.
pub(crate) fn check_replaceable(folder: &Path) -> Result<()> {
    let refuse =
        |problem: String| Err(Error::invalid(folder, format!("is not replaced: {problem}")));
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
    // A folder that moves has another one above it, which is written in it.
    #[cfg(unix)]
    if rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_err() {
        return refuse("nothing can be written to it, so it cannot be moved".into());
    }
    let current = std::env::current_dir().and_then(|current| current.canonicalize());
    if current.is_ok_and(|current| {
        current.ancestors().any(|above| above == folder || is_same(above, folder))
    }) {
        return refuse("the current folder is in it".into());
    }
    match foreign(folder)? {
        None => Ok(()),
        Some(problem) => refuse(format!(
            "{problem}: `force` replaces what secateur wrote, as long as nothing was changed; move \
             the folder away, or choose another name"
        )),
    }
}

/// Describes what in a folder is not as it was written.
pub(crate) fn foreign(folder: &Path) -> Result<Option<String>> {
    let entries = tree::all(folder)?;
    if entries.is_empty() {
        return Ok(None);
    }
    let path = folder.join(RECORD);
    let record = match read_sealed::<Record>(&path) {
        Ok(record) if record.folder == Record::TEXT && record.format_version == Record::VERSION => {
            record
        }
        _ => {
            return Ok(Some(format!(
                "secateur did not write it, as it has no {RECORD}, or a damaged one"
            )));
        }
    };
    for tree::Entry { path, is_file } in entries {
        let (place, name) = (folder.join(&path), spelled(&path));
        let own = match is_file {
            true => {
                path == Path::new(RECORD) || record.files.get(&name) == Some(&Written::of(&place)?)
            }
            false => place.is_dir() && !place.is_symlink() && record.folders.contains(&name),
        };
        if !own {
            let known = record.files.contains_key(&name);
            let problem = if known {
                "was changed since secateur wrote it"
            } else {
                "was not written by secateur"
            };
            return Ok(Some(format!("{} in it {problem}", shown(&path))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line is a change to a folder that was written, and how it is called.
    #[test]
    fn what_may_be_replaced() {
        type Change = fn(&Path);
        let write = |path: &Path, text: &str| std::fs::write(path, text).unwrap();
        let cases: &[(Change, &str)] = &[
            (|_| (), ""),
            (|at| std::fs::remove_file(at.join("vae/config.json")).unwrap(), ""),
            (
                |at| std::fs::write(at.join("vae/best.safetensors"), "").unwrap(),
                "vae/best.safetensors in it was not written",
            ),
            (
                |at| std::fs::write(at.join("vae/config.json"), "ba").unwrap(),
                "vae/config.json in it was changed",
            ),
            (
                |at| std::fs::write(at.join("vae/config.json"), "longer").unwrap(),
                "vae/config.json in it was changed",
            ),
            (|at| std::fs::create_dir(at.join("mine")).unwrap(), "mine in it was not written"),
            (|at| std::fs::remove_file(at.join(RECORD)).unwrap(), "it has no .secateur.json"),
            (|at| std::fs::write(at.join(RECORD), "{}").unwrap(), "or a damaged one"),
            (
                |at| {
                    std::fs::remove_file(at.join("vae/config.json")).unwrap();
                    std::fs::create_dir(at.join("vae/config.json")).unwrap();
                },
                "vae/config.json in it was changed",
            ),
            #[cfg(unix)]
            (
                |at| {
                    std::fs::rename(at.join("vae"), at.join("../moved")).unwrap();
                    std::os::unix::fs::symlink("../moved", at.join("vae")).unwrap();
                },
                "vae in it was not written",
            ),
        ];
        for (change, words) in cases {
            let temporary = tempfile::tempdir().unwrap();
            let folder = temporary.path().join("out");
            std::fs::create_dir_all(folder.join("vae")).unwrap();
            std::fs::create_dir(folder.join("empty")).unwrap();
            write(&folder.join("vae/config.json"), "ab");
            write_record(&folder).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(10));
            change(&folder);
            match (*words, check_replaceable(&folder)) {
                ("", found) => found.unwrap(),
                (words, found) => {
                    let error = found.unwrap_err().to_string();
                    assert!(error.contains(words), "{words:?} is not in {error:?}");
                }
            }
        }
        #[cfg(target_os = "linux")]
        {
            use std::os::unix::ffi::OsStrExt;
            let temporary = tempfile::tempdir().unwrap();
            let names: [&[u8]; 4] = [b"a\xff", b"a\xfe", b"a\xef\xbf\xbd", b"a\\xff"];
            for (bytes, name) in (1..).zip(names) {
                write(&temporary.path().join(OsStr::from_bytes(name)), &"-".repeat(bytes));
            }
            write_record(temporary.path()).unwrap();
            check_replaceable(temporary.path()).unwrap();
        }
        let temporary = tempfile::tempdir().unwrap();
        check_replaceable(temporary.path()).unwrap();
        write(&temporary.path().join("0000.png"), "mine");
        check_replaceable(temporary.path()).unwrap_err();
    }

    /// What is linked to, however deep, is read.
    #[test]
    #[cfg(unix)]
    fn what_inputs_link_to() {
        use std::os::unix::fs::symlink;
        let temporary = tempfile::tempdir().unwrap();
        let at = |name: &str| temporary.path().join(name);
        for folder in ["model/extra/deep", "one", "two", "three", "other"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("one/weights"), "").unwrap();
        std::fs::write(at("three/weights"), "").unwrap();
        symlink("../../../one/weights", at("model/extra/deep/model.safetensors")).unwrap();
        symlink("../two", at("model/vae")).unwrap();
        symlink("../other", at("model/docs")).unwrap();
        symlink("..", at("model/loop")).unwrap();
        std::fs::write(at("model/model_index.json"), r#"{"vae": ["diffusers", "AutoencoderKL"]}"#)
            .unwrap();
        symlink("../three/weights", at("two/model.safetensors")).unwrap();
        let inputs = Inputs::new(&[&at("model")]).unwrap();
        for folder in ["one", "two", "three", "model", "model/extra"] {
            let folder = at(folder).canonicalize().unwrap();
            assert!(
                inputs.check(&folder).unwrap_err().to_string().contains("overlap"),
                "{}",
                folder.display()
            );
        }
        inputs.check(&at("other").canonicalize().unwrap()).unwrap();
    }
}
