//! Pipelines of fixtures as copies.

use serde_json::{Map, Value};
use std::path::Path;

/// Puts a pipeline of the goldens together, by copies.
pub(crate) fn copy_pipeline(name: &str, target: &Path) {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    let source = goldens.join("pipelines").join(name);
    let links: Map<String, Value> =
        serde_json::from_str(&std::fs::read_to_string(source.join("links.json")).unwrap()).unwrap();
    copy_fixture(&source, target);
    for (component, source) in links {
        copy_fixture(&goldens.join(source.as_str().unwrap()), &target.join(component));
    }
}

/// Copies a folder of fixtures without the values that tests compare with.
pub(crate) fn copy_fixture(source: &Path, target: &Path) {
    std::fs::create_dir_all(target).unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        let values = ["io.safetensors", "cases.json", "run.json", "run.safetensors", "links.json"];
        match path.is_dir() {
            true => copy_fixture(&path, &target.join(name)),
            false if values.iter().any(|value| name == *value) => {}
            false => drop(std::fs::copy(&path, target.join(name)).unwrap()),
        }
    }
}
