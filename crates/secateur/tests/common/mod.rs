//! Runs the real binary on the real bundled model.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(crate) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A bundled model.
pub(crate) fn model(name: &str) -> PathBuf {
    project().join("models").join(name)
}

/// The binary, started in the project's folder.
pub(crate) fn secateur() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
    command.current_dir(project());
    command
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs to success and returns standard output.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?} failed: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs to failure with that exit code and returns standard error.
#[track_caller]
pub(crate) fn fail(command: &mut Command, code: i32) -> String {
    let output: Output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {}", text(&output.stderr));
    assert!(output.stdout.is_empty(), "{command:?} printed {}", text(&output.stdout));
    text(&output.stderr)
}

/// What a folder holds, hidden entries too.
pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    // What an output says of itself is in all of them.
    names.retain(|name| name != ".secateur.json");
    names.sort();
    names
}
