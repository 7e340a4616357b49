//! A tiny model, and every command that writes something of it.

#[path = "../../../../secateur-models/tests/common/single_file.rs"]
#[expect(dead_code, reason = "other tests look at what a conversion makes")]
mod single_file;

use super::pipeline::copy_pipeline;
use super::tree::Tree;
use single_file::{Fixture, save};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A command that writes a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitKind {
    Generate,
    Prune,
    Slim,
    Skip,
    Compress,
    Convert,
    Export,
    Compare,
}

impl UnitKind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Generate,
        Self::Prune,
        Self::Slim,
        Self::Skip,
        Self::Compress,
        Self::Convert,
        Self::Export,
        Self::Compare,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Prune => "prune",
            Self::Slim => "slim",
            Self::Skip => "skip",
            Self::Compress => "compress",
            Self::Convert => "convert",
            Self::Export => "export",
            Self::Compare => "compare",
        }
    }

    /// Whether it takes `--resume`.
    pub(crate) fn resumes(self) -> bool {
        matches!(self, Self::Prune | Self::Slim | Self::Skip | Self::Compress)
    }
}

const RECIPE: &str = "\
steps = 2
batch = 2
report-samples = 0

[[method]]
name = 'slim'
budget = 0.05

[[method]]
name = 'prune'
pattern = '2:4'
";

/// The inputs of all commands, in a folder of their own.
pub(crate) struct Tiny {
    folder: TempDir,
    whole: Tree,
}

impl Tiny {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        copy_pipeline("stable_diffusion_3", &at("tiny-model"));
        std::fs::write(at("prompts.txt"), "red apple\ngreen pear\n").unwrap();
        std::fs::write(at("report.txt"), "blue plum\n").unwrap();
        std::fs::write(at("recipe.toml"), RECIPE).unwrap();
        let fixture = Fixture::open("sd3");
        save(&fixture.tensors(), &at("single-file.safetensors"));
        fixture.write_folder(&at("like-this"));
        let mut tiny = Self { folder, whole: Tree::default() };
        let mut structured = tiny.command(UnitKind::Prune, &tiny.at("smaller-model"));
        let output = structured.arg("--structured").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        tiny.whole = Tree::read(tiny.folder.path()).unwrap();
        tiny
    }

    /// The path of an input.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What an input was at first.
    pub(crate) fn tree(&self, name: &str) -> Tree {
        Tree::read(&self.at(name)).unwrap()
    }

    /// A command in its smallest form, for the output folder `out`.
    pub(crate) fn command(&self, kind: UnitKind, out: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
        command.current_dir(self.folder.path()).arg(kind.name());
        let calibrated = ["--prompts=prompts.txt", "--report-prompts=report.txt", "--batch=2"];
        match kind {
            UnitKind::Generate => {
                command.args(["tiny-model", "--prompts=prompts.txt", "--steps=1"])
            }
            UnitKind::Prune => command
                .args(["tiny-model", "--steps=2", "--packages=3", "--report-samples=1"])
                .args(calibrated),
            UnitKind::Slim => command
                .args(["tiny-model", "--steps=2", "--packages=2", "--report-samples=0"])
                .args(calibrated),
            UnitKind::Skip => command
                .args("tiny-model --steps=3 --keep=0.7 --iterations=2 --exchanges=2".split(' '))
                .arg("--report-samples=0")
                .args(calibrated),
            UnitKind::Compress => {
                command.args(["tiny-model", "--recipe=recipe.toml", "--prompts=prompts.txt"])
            }
            UnitKind::Convert => command.args(["single-file.safetensors", "--like=like-this"]),
            UnitKind::Export => command.args(["smaller-model", "--densify"]),
            UnitKind::Compare => {
                command.args(["tiny-model", "smaller-model", "--prompts=report.txt", "--steps=1"])
            }
        };
        command.args(["--threads=1", "--quiet", "--out"]).arg(out);
        command
    }

    /// That the inputs are what they were.
    pub(crate) fn is_unchanged(&self) -> Result<(), String> {
        let difference = Tree::read(self.folder.path()).unwrap_or_default().difference(&self.whole);
        difference.map_or(Ok(()), |difference| Err(format!("an input changed: {difference}")))
    }
}
