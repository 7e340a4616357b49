//! Preloads `faults/shim.c`.

use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// The library, compiled.
pub(crate) struct Shim(TempDir);

/// What happens at an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disturbance {
    KillBefore,
    KillAfter,
    /// With an errno.
    Fail(i32),
    Short(i32),
    Full(i32),
    Signal(i32),
}

impl Shim {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim.c");
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        compiler
            .args(["-O1", "-shared", "-fPIC", "-pthread", "-o"])
            .arg(folder.path().join("shim.so"));
        let output = compiler.args([source, "-ldl"]).output().expect("a C compiler is needed");
        assert!(
            output.status.success(),
            "{compiler:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Self(folder)
    }

    fn library(&self) -> PathBuf {
        self.0.path().join("shim.so")
    }

    /// Disturbs the operation `at` of the command.
    pub(crate) fn disturb(&self, command: &mut Command, at: usize, disturbance: Disturbance) {
        let (how, code) = match disturbance {
            Disturbance::KillBefore => ("kill-before", 0),
            Disturbance::KillAfter => ("kill-after", 0),
            Disturbance::Fail(code) => ("fail", code),
            Disturbance::Short(code) => ("short", code),
            Disturbance::Full(code) => ("full", code),
            Disturbance::Signal(code) => ("signal", code),
        };
        command.env("LD_PRELOAD", self.library()).env("FAULTS_AT", at.to_string());
        command.env("FAULTS_DO", how).env("FAULTS_CODE", code.to_string());
    }

    /// Runs the command as if the file system could not do `without`, which may be "".
    pub(crate) fn without(&self, command: &mut Command, without: &str) {
        if !without.is_empty() {
            command.env("LD_PRELOAD", self.library()).env("FAULTS_WITHOUT", without);
        }
    }

    /// Runs the command to success and lists its operations.
    pub(crate) fn operations(&self, command: &mut Command) -> Vec<String> {
        let log = tempfile::NamedTempFile::new().unwrap();
        let output = command
            .env("LD_PRELOAD", self.library())
            .env("FAULTS_LOG", log.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::read_to_string(log.path()).unwrap().lines().map(str::to_owned).collect()
    }
}
