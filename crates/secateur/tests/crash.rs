//! Every command that writes a folder, killed at each of its file operations, and with each of them
//! failing.
//!
//! A sample of the operations is tried; `SECATEUR_FAULTS=all` tries all of them, and
//! `SECATEUR_FAULTS=CASE` one, as a failure prints it.

#![cfg(target_os = "linux")]

#[path = "common/harness/mod.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod harness;
#[path = "../../secateur-models/tests/common/cases.rs"]
#[macro_use]
mod cases;

use harness::cases::{Tally, each, number, row, tell};
use harness::process::Ended;
use harness::random::Random;
use harness::shim::{Disturbance, Shim};
use harness::tiny::{Tiny, UnitKind};
use harness::tree::Tree;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const SIGKILL: i32 = 9;
/// Stands before the folder of an output that could not be put in place.
const KEPT: &str = "is complete in ";

/// What is at --out before, and what the file system can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    /// Nothing.
    New,
    /// A folder that --force replaces.
    Force,
    /// The same on a file system without atomic exchanges and hard links, such as some network file
    /// systems.
    NewPlain,
    ForcePlain,
}

impl Setting {
    const ALL: [Self; 4] = [Self::New, Self::Force, Self::NewPlain, Self::ForcePlain];

    fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Force => "force",
            Self::NewPlain => "new-plain",
            Self::ForcePlain => "force-plain",
        }
    }

    fn replaces(self) -> bool {
        matches!(self, Self::Force | Self::ForcePlain)
    }

    fn without(self) -> &'static str {
        match self {
            Self::New | Self::Force => "",
            Self::NewPlain | Self::ForcePlain => "exchange,link",
        }
    }
}

/// How a run is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    KillBefore,
    KillAfter,
    /// Killed, and the run that goes on killed too.
    KillTwice,
    Io,
    NoSpace,
    Short,
    Full,
}

impl Mode {
    const ALL: [Self; 7] = [
        Self::KillBefore,
        Self::KillAfter,
        Self::KillTwice,
        Self::Io,
        Self::NoSpace,
        Self::Short,
        Self::Full,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::KillBefore => "kill-before",
            Self::KillAfter => "kill-after",
            Self::KillTwice => "kill-twice",
            Self::Io => "io-error",
            Self::NoSpace => "no-space",
            Self::Short => "short-write",
            Self::Full => "disk-full",
        }
    }

    fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter | Self::KillTwice)
    }

    fn disturbance(self) -> Disturbance {
        match self {
            Self::KillBefore | Self::KillTwice => Disturbance::KillBefore,
            Self::KillAfter => Disturbance::KillAfter,
            Self::Io => Disturbance::Fail(EIO),
            Self::NoSpace => Disturbance::Fail(ENOSPC),
            Self::Short => Disturbance::Short(ENOSPC),
            Self::Full => Disturbance::Full(ENOSPC),
        }
    }

    /// How many of the first operations, of the last, and of those between are tried.
    fn sample(self, setting: Setting) -> (usize, usize, usize) {
        match (self, setting) {
            (Self::KillBefore, Setting::New) => (5, 8, 4),
            (Self::NoSpace, Setting::New) => (3, 6, 2),
            (Self::Io, Setting::New) => (2, 6, 2),
            (Self::KillBefore, Setting::Force | Setting::ForcePlain) => (1, 6, 2),
            (Self::NoSpace, Setting::Force | Setting::ForcePlain) => (1, 4, 1),
            (Self::KillBefore | Self::KillTwice, _) => (1, 2, 1),
            _ => (0, 1, 1),
        }
    }
}

/// What others have beside the output: names that this program uses, or once used, are theirs all
/// the same.
fn neighbours() -> Tree {
    Tree::default()
        .with("notes.txt", b"mine")
        .with("out2/model_index.json", b"{}")
        .with(".out", b"mine")
        .with(".out.unfinished/run.json", b"{\"format_version\": 1}")
        .with(".out.run", b"{\"folders\": [\"out2\", \"../inputs\", \"\"]}")
        .with(".out.1-slim/report.json", b"{}")
        .with(".out.1-slim.statistics/statistics.json", b"{}")
        .with("..out.partial/content/0000.png", b"mine")
        .with(".out.abcdef.partial/content/0000.png", b"mine")
        .with(".out.secateur.txt", b"mine")
        .with(".other.secateur/mine.txt", b"mine")
        .with(".other.0123456789abcdef01234567.secateur/mine.txt", b"mine")
}

/// Whether a name beside `out` is one that a run for it may use.
fn is_ours(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let middle = name.strip_prefix(".out.").and_then(|rest| rest.strip_suffix(".secateur"));
    name == ".out.secateur"
        || middle.is_some_and(|middle| middle.chars().all(|c| c.is_ascii_hexdigit() || c == '-'))
}

/// A command in a setting.
struct Scene<'a> {
    tiny: &'a Tiny,
    shim: &'a Shim,
    kind: UnitKind,
    setting: Setting,
    /// What the output replaces.
    old: Option<Tree>,
    expected: Tree,
    operations: Vec<String>,
}

/// A disturbed run.
#[derive(Clone, Copy)]
struct Case {
    mode: Mode,
    at: usize,
}

/// What is at --out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Before,
    Published,
}

impl<'a> Scene<'a> {
    fn new(tiny: &'a Tiny, shim: &'a Shim, kind: UnitKind, setting: Setting) -> Self {
        let old = setting.replaces().then(|| match kind {
            UnitKind::Generate | UnitKind::Compare => {
                let folder = tempfile::tempdir().unwrap();
                let mut command = tiny.command(kind, &folder.path().join("out"));
                assert_eq!(Ended::of(command.arg("--seed=5")).code, Some(0));
                Tree::read(&folder.path().join("out")).unwrap()
            }
            _ => tiny.tree("smaller-model"),
        });
        let mut scene = Self {
            tiny,
            shim,
            kind,
            setting,
            old,
            expected: Tree::default(),
            operations: Vec::new(),
        };
        let folder = scene.parent();
        scene.operations = shim.operations(&mut scene.command(folder.path(), scene.flags()));
        scene.expected = Tree::read(&folder.path().join("out")).unwrap();
        scene.is_clean(folder.path()).unwrap();
        scene
    }

    /// A folder with all that lies beside the output.
    fn parent(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        neighbours().write(folder.path());
        if let Some(old) = &self.old {
            old.write(&folder.path().join("out"));
        }
        folder
    }

    fn flags(&self) -> &'static [&'static str] {
        if self.setting.replaces() { &["--force"] } else { &[] }
    }

    fn command(&self, parent: &Path, flags: &[&str]) -> Command {
        let mut command = self.tiny.command(self.kind, &parent.join("out"));
        self.shim.without(command.args(flags), self.setting.without());
        command
    }

    fn name(&self) -> String {
        format!("{} {}", self.kind.name(), self.setting.name())
    }

    /// The cases of a mode.
    fn cases(&self, mode: Mode, all: bool) -> Vec<Case> {
        let count = self.operations.len();
        let (first, last, between) = mode.sample(self.setting);
        let mut at: BTreeSet<usize> =
            (1..=count).filter(|n| all || *n <= first || n + last > count).collect();
        let mut random = Random::new(number("SECATEUR_SEED").unwrap_or(1));
        // One of every part, so that they are spread over the run.
        at.extend(
            (0..between)
                .map(|part| 1 + (count * part + random.below(count)) / between)
                .filter(|at| *at <= count),
        );
        at.into_iter().map(|at| Case { mode, at }).collect()
    }

    /// What is needed to repeat a case.
    fn repeat(&self, case: Case) -> String {
        format!(
            "SECATEUR_FAULTS={}:{}:{}:{} ({})",
            self.kind.name(),
            self.setting.name(),
            case.mode.name(),
            case.at,
            self.operations.get(case.at - 1).map_or("past the end", |operation| operation)
        )
    }

    fn survives(&self, case: Case) -> Result<(), String> {
        self.outcome(case).map_err(|problem| format!("{}\n{problem}", self.repeat(case)))
    }

    fn outcome(&self, Case { mode, at }: Case) -> Result<(), String> {
        let folder = self.parent();
        let parent = folder.path();
        let mut command = self.command(parent, self.flags());
        self.shim.disturb(&mut command, at, mode.disturbance());
        let ended = Ended::of(&mut command);
        let killed = mode.kills() && ended.signal == Some(SIGKILL);
        if !killed {
            ended.is_orderly()?;
        }
        let mut state =
            self.state(parent, mode.kills()).map_err(|problem| ended.problem(problem))?;
        match (ended.code, state) {
            (Some(0), State::Before) => {
                return Err(ended.problem("success, and the output is not there"));
            }
            (Some(1), State::Published) => {
                return Err(ended.problem("an error, and the output is complete"));
            }
            (Some(1), _) if ended.stderr.trim().is_empty() => {
                return Err(ended.problem("an error without a message"));
            }
            (Some(0 | 1) | None, _) => {}
            (Some(_), _) => return Err(ended.problem("neither exit code 0 nor 1")),
        }
        if mode == Mode::KillTwice {
            let again = 1 + Random::new(at as u64).below(self.operations.len());
            let resume: &[&str] = if self.kind.resumes() { &["--resume"] } else { &[] };
            let mut command = self.command(parent, &[self.flags(), resume].concat());
            self.shim.disturb(&mut command, again, Disturbance::KillBefore);
            let ended = Ended::of(&mut command);
            let before = |problem| {
                ended.problem(format!("the run that went on, killed at {again}: {problem}"))
            };
            if ended.signal != Some(SIGKILL) {
                ended.is_orderly().map_err(before)?;
            }
            state = self.state(parent, true).map_err(before)?;
        }
        let succeeded = ended.code == Some(0);
        self.recovers(parent, state, succeeded)
            .map_err(|problem| format!("{problem}\nbefore that: {}", ended.problem("")))?;
        let end = self.state(parent, false)?;
        if end != State::Published {
            return Err("the output is not there in the end".into());
        }
        self.is_clean(parent)?;
        self.tiny.is_unchanged()
    }

    /// What a user does next.
    fn recovers(&self, parent: &Path, state: State, succeeded: bool) -> Result<(), String> {
        if self.kind.resumes() && !succeeded {
            let ended =
                Ended::of(&mut self.command(parent, &[self.flags(), &["--resume"]].concat()));
            ended.is_orderly()?;
            match ended.code {
                Some(0) => return Ok(()),
                Some(1) if ended.stderr.contains("nothing to resume") => {}
                // Killed when all was done.
                Some(1)
                    if ended.stderr.contains("exists already") && self.is_clean(parent).is_ok() => {
                }
                _ => {
                    return Err(ended.problem("--resume neither went on nor had nothing to resume"));
                }
            }
        }
        let ended = Ended::of(&mut self.command(parent, self.flags()));
        ended.is_orderly()?;
        match ended.code {
            Some(0) => Ok(()),
            Some(1) if state == State::Published && !self.setting.replaces() => {
                if !ended.stderr.contains("exists already") {
                    return Err(ended.problem("it does not say that the output exists already"));
                }
                if self.state(parent, false)? != State::Published {
                    return Err(ended.problem("the output that was complete is gone"));
                }
                let ended = Ended::of(&mut self.command(parent, &["--force"]));
                ended.is_orderly()?;
                if ended.code == Some(0) { Ok(()) } else { Err(ended.problem("--force failed")) }
            }
            // An output that could not be put in place is kept until somebody says what to do with
            // it.
            Some(1) if ended.stderr.contains(KEPT) => {
                self.is_kept(&ended.stderr).map_err(|problem| ended.problem(problem))?;
                let ended = Ended::of(&mut self.command(parent, &["--force"]));
                ended.is_orderly()?;
                if ended.code == Some(0) { Ok(()) } else { Err(ended.problem("--force failed")) }
            }
            _ => Err(ended.problem("the command failed when it was run again")),
        }
    }

    /// That the folder that a message names is a whole output.
    fn is_kept(&self, message: &str) -> Result<(), String> {
        let path = message
            .split(KEPT)
            .nth(1)
            .unwrap_or_default()
            .split([';', '\n'])
            .next()
            .unwrap_or_default();
        let Some(kept) = Tree::read(Path::new(path)) else {
            return Err(format!("{path:?} is no folder"));
        };
        kept.difference_of_output(&self.expected)
            .map_or(Ok(()), |difference| Err(format!("{path}: {difference}")))
    }

    /// What is at --out, which is never anything in between.
    fn state(&self, parent: &Path, killed: bool) -> Result<State, String> {
        let out = parent.join("out");
        let found = Tree::read(&out);
        self.neighbours_are_whole(parent)?;
        if found.is_none() && std::fs::symlink_metadata(&out).is_ok() {
            return Err("--out is no folder".into());
        }
        match (&found, &self.old) {
            (None, None) => Ok(State::Before),
            (Some(found), Some(old)) if found == old => Ok(State::Before),
            // Between two renames; the next run puts it back.
            (None, Some(_)) if killed && self.setting == Setting::ForcePlain => Ok(State::Before),
            (None, Some(_)) => Err("what --force was to replace is gone".into()),
            (Some(found), _) => match found.difference_of_output(&self.expected) {
                None => Ok(State::Published),
                Some(difference) => Err(format!(
                    "--out holds neither what was there nor the whole output: {difference}"
                )),
            },
        }
    }

    fn neighbours_are_whole(&self, parent: &Path) -> Result<(), String> {
        let found = Tree::read_some(parent, |name| name != "out" && !is_ours(name));
        let difference = found.difference(&neighbours());
        difference.map_or(Ok(()), |difference| Err(format!("beside --out, {difference}")))
    }

    /// That nothing of a run is left beside its output.
    fn is_clean(&self, parent: &Path) -> Result<(), String> {
        self.neighbours_are_whole(parent)?;
        match Tree::read_some(parent, is_ours).difference(&Tree::default()) {
            Some(left) => Err(format!("left beside --out: {left}")),
            None => Ok(()),
        }
    }
}

/// The one case that was asked for, if so: its kind, its setting, and itself.
fn asked_for(request: &str) -> Option<(UnitKind, Setting, Case)> {
    let [kind, setting, mode, at] = request.split(':').collect::<Vec<_>>()[..] else { return None };
    let kind = UnitKind::ALL.into_iter().find(|known| known.name() == kind)?;
    let setting = Setting::ALL.into_iter().find(|known| known.name() == setting)?;
    let mode = Mode::ALL.into_iter().find(|known| known.name() == mode)?;
    Some((kind, setting, Case { mode, at: at.parse().ok()? }))
}

/// Tries a command in all settings and modes.
fn survives(kind: UnitKind) {
    let request = std::env::var("SECATEUR_FAULTS").unwrap_or_default();
    let asked_for = asked_for(&request);
    assert!(
        request.is_empty() || request == "all" || asked_for.is_some(),
        "SECATEUR_FAULTS={request} is no case"
    );
    if asked_for.is_some_and(|(wanted, ..)| wanted != kind) {
        return;
    }
    let (tiny, shim) = (Tiny::new(), Shim::new());
    let mut tallies = [Tally::default(); Mode::ALL.len()];
    let mut operations = Vec::new();
    for setting in Setting::ALL {
        // How a folder is put in place is the same for all commands.
        let plain = matches!(setting, Setting::NewPlain | Setting::ForcePlain);
        if plain && !matches!(kind, UnitKind::Generate | UnitKind::Prune)
            || asked_for.is_some_and(|(_, only, _)| only != setting)
        {
            continue;
        }
        let scene = Scene::new(&tiny, &shim, kind, setting);
        operations.push(scene.operations.len().to_string());
        for (mode, tally) in Mode::ALL.into_iter().zip(&mut tallies) {
            let cases = match asked_for {
                Some((_, _, case)) if case.mode != mode => continue,
                Some((_, _, case)) => vec![case],
                None => scene.cases(mode, request == "all"),
            };
            let failures = each(&cases, |case| scene.survives(*case));
            let what =
                format!("{} ({} operations) {}", scene.name(), scene.operations.len(), mode.name());
            tally.add(tell(&what, cases.len(), &failures));
        }
    }
    row(&format!("{} | {}", kind.name(), operations.join(" / ")), &tallies);
}

/// What somebody else keeps under the name of a run's own folder is neither used nor removed.
#[test]
fn a_foreign_folder_under_our_name_stays() {
    let tiny = Tiny::new();
    let folder = tempfile::tempdir().unwrap();
    let foreign = Tree::default()
        .with(".out.secateur/mine.txt", b"mine")
        .with(".out.0123456789abcdef01234567.secateur/mine.txt", b"mine");
    foreign.write(folder.path());
    for kind in [UnitKind::Generate, UnitKind::Prune, UnitKind::Compress] {
        for flags in [[].as_slice(), &["--force"], &["--resume"], &["--resume", "--force"]] {
            if flags.contains(&"--resume") && !kind.resumes() {
                continue;
            }
            let ended = Ended::of(tiny.command(kind, &folder.path().join("out")).args(flags));
            ended.is_orderly().unwrap();
            let names_it = [".out.secateur", "nothing to resume"]
                .iter()
                .any(|words| ended.stderr.contains(words));
            assert!(
                ended.code == Some(0) || names_it,
                "{}",
                ended.problem("it does not name the folder")
            );
            let found = Tree::read_some(folder.path(), |name| name != "out");
            assert_eq!(found.difference(&foreign), None, "{}", ended.problem(""));
            let _ = std::fs::remove_dir_all(folder.path().join("out"));
        }
    }
}

tests! {
    survives {
        generate(UnitKind::Generate);
        prune(UnitKind::Prune);
        slim(UnitKind::Slim);
        skip(UnitKind::Skip);
        compress(UnitKind::Compress);
        convert(UnitKind::Convert);
        export(UnitKind::Export);
        compare(UnitKind::Compare);
    }
}
