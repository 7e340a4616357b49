//! Pipelines of fixtures, put together.

use serde_json::{Map, Value};
use std::os::unix::fs::symlink;
use std::path::Path;

/// The folder of a pipeline under `goldens/pipelines`, with links to the components that stand
/// elsewhere.
pub(crate) fn assemble(goldens: &Path, name: &str) -> tempfile::TempDir {
    let (folder, source) = (
        tempfile::tempdir().unwrap(),
        goldens.join("pipelines").join(name).canonicalize().unwrap(),
    );
    for entry in std::fs::read_dir(&source).unwrap() {
        let entry = entry.unwrap();
        symlink(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let links: Map<String, Value> =
        serde_json::from_str(&std::fs::read_to_string(source.join("links.json")).unwrap()).unwrap();
    for (component, target) in links {
        symlink(
            goldens.join(target.as_str().unwrap()).canonicalize().unwrap(),
            folder.path().join(component),
        )
        .unwrap();
    }
    folder
}
