//! Folders held against each other.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// What an output says of itself.
const RECORD: &str = ".secateur.json";

/// All that a folder holds, hidden entries too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<PathBuf, Entry>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Folder,
    File(Vec<u8>),
    Link(PathBuf),
    /// None of these, such as a pipe.
    Other,
}

impl Tree {
    /// Reads a folder; none where there is nothing, or no folder.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        let mut tree = Self::default();
        folder.is_dir().then(|| tree.add(folder, Path::new("")))?;
        Some(tree)
    }

    /// Reads what is below `folder` at the names that `wanted` picks.
    pub(crate) fn read_some(folder: &Path, wanted: impl Fn(&OsStr) -> bool) -> Self {
        Self::read(folder).unwrap_or_default().only(wanted)
    }

    /// What is at the names that `wanted` picks, and below them.
    pub(crate) fn only(mut self, wanted: impl Fn(&OsStr) -> bool) -> Self {
        self.0.retain(|path, _| path.iter().next().is_none_or(&wanted));
        self
    }

    fn add(&mut self, folder: &Path, below: &Path) {
        // What another process removes meanwhile is left out.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, below) = (entry.path(), below.join(entry.file_name()));
            let Ok(kind) = entry.file_type() else { continue };
            let found = match kind {
                kind if kind.is_dir() => Some(Entry::Folder),
                kind if kind.is_file() => std::fs::read(&path).ok().map(Entry::File),
                kind if kind.is_symlink() => std::fs::read_link(&path).ok().map(Entry::Link),
                _ => Some(Entry::Other),
            };
            if kind.is_dir() {
                self.add(&path, &below);
            }
            self.0.extend(found.map(|found| (below, found)));
        }
    }

    /// Makes it, in a folder that may exist.
    pub(crate) fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for (path, entry) in &self.0 {
            let path = folder.join(path);
            match entry {
                Entry::Folder => std::fs::create_dir(path).unwrap(),
                Entry::File(bytes) => std::fs::write(path, bytes).unwrap(),
                Entry::Link(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                Entry::Other => panic!("{} cannot be made", path.display()),
            }
        }
        self.set_times(folder);
    }

    /// Files are as old as the record of an output says.
    fn set_times(&self, folder: &Path) {
        for (path, bytes) in self.files().filter(|(path, _)| path.ends_with(RECORD)) {
            let record: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            for (name, written) in record["content"]["files"].as_object().unwrap() {
                let file = folder.join(path).with_file_name(name);
                let modified =
                    UNIX_EPOCH + Duration::from_nanos(written["modified"].as_u64().unwrap());
                // What a test took away or damaged is not there, or not as it was.
                let _ = std::fs::File::options()
                    .append(true)
                    .open(file)
                    .map(|file| file.set_modified(modified));
            }
        }
    }

    /// Adds a file, and the folders it is in.
    pub(crate) fn with(mut self, path: &str, bytes: &[u8]) -> Self {
        for folder in
            Path::new(path).ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty())
        {
            self.0.insert(folder.to_owned(), Entry::Folder);
        }
        self.0.insert(path.into(), Entry::File(bytes.to_vec()));
        self
    }

    /// The files, with their bytes.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.0.iter().filter_map(|(path, entry)| match entry {
            Entry::File(bytes) => Some((path.as_path(), bytes.as_slice())),
            _ => None,
        })
    }

    /// The first difference, if any, from what it should be.
    pub(crate) fn difference(&self, wanted: &Self) -> Option<String> {
        self.first_difference(wanted, |_, found, wanted| {
            (found != wanted).then(|| "has other bytes".to_owned())
        })
    }

    /// The first difference, if any, from the output that a run should have. Reports and records
    /// hold times and paths: they only have to be whole.
    pub(crate) fn difference_of_output(&self, wanted: &Self) -> Option<String> {
        self.first_difference(wanted, |path, found, wanted| match (path.to_str(), found) {
            (Some("report.json" | RECORD), Entry::File(bytes)) => {
                let json = serde_json::from_slice::<serde_json::Value>(bytes);
                json.err().map(|error| format!("is no JSON: {error}"))
            }
            (Some("report.html"), Entry::File(bytes)) => {
                (!bytes.trim_ascii_end().ends_with(b"</html>")).then(|| "is cut short".to_owned())
            }
            _ => (found != wanted).then(|| "has other bytes".to_owned()),
        })
    }

    fn first_difference(
        &self,
        wanted: &Self,
        compare: impl Fn(&Path, &Entry, &Entry) -> Option<String>,
    ) -> Option<String> {
        let problem = |(path, wanted): (&PathBuf, &Entry)| match self.0.get(path) {
            None => Some(format!("{} is missing", path.display())),
            Some(found) => {
                compare(path, found, wanted).map(|problem| format!("{} {problem}", path.display()))
            }
        };
        let more = || self.0.keys().find(|path| !wanted.0.contains_key(*path));
        wanted
            .0
            .iter()
            .find_map(problem)
            .or_else(|| more().map(|path| format!("{} is there too", path.display())))
    }
}
