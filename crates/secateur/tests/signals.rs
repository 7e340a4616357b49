//! SIGINT, SIGTERM and SIGHUP at any moment of every command.
//!
//! `SECATEUR_SIGNALS=N` sets how many moments are tried of each, `SECATEUR_SEED` which.

#![cfg(target_os = "linux")]

#[path = "common/harness/mod.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod harness;
#[path = "../../secateur-models/tests/common/cases.rs"]
#[macro_use]
mod cases;

use harness::cases::{each, number, row, tell};
use harness::process::{Ended, Running};
use harness::random::Random;
use harness::shim::{Disturbance, Shim};
use harness::tiny::{Tiny, UnitKind};
use harness::tree::Tree;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Signals that end a run in order.
const SIGNALS: [(&str, i32); 3] = [("INT", 2), ("TERM", 15), ("HUP", 1)];
const INTERRUPTED: i32 = 130;

/// When a signal comes.
#[derive(Clone, Copy, Debug)]
enum Moment {
    After(Duration),
    /// Before a file operation.
    Operation(usize),
}

struct Scene<'a> {
    tiny: &'a Tiny,
    shim: &'a Shim,
    kind: UnitKind,
    expected: Tree,
    operations: usize,
    time: Duration,
}

impl<'a> Scene<'a> {
    fn new(tiny: &'a Tiny, shim: &'a Shim, kind: UnitKind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let operations = shim.operations(&mut tiny.command(kind, &folder.path().join("out"))).len();
        let ended = Ended::of(&mut tiny.command(kind, &folder.path().join("again")));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let expected = Tree::read(&folder.path().join("out")).unwrap();
        Self { tiny, shim, kind, expected, operations, time: ended.time }
    }

    fn command(&self, parent: &Path, flags: &[&str]) -> Command {
        let mut command = self.tiny.command(self.kind, &parent.join("out"));
        command.args(flags);
        command
    }

    /// Moments of both kinds, spread over the run.
    fn moments(&self, count: usize, random: &mut Random) -> Vec<Moment> {
        let share =
            |random: &mut Random, part: usize| (part as f64 + random.share()) / count as f64;
        let mut moments: Vec<_> =
            (0..count).map(|part| Moment::After(self.time.mul_f64(share(random, part)))).collect();
        let operation =
            |part| Moment::Operation(1 + (self.operations as f64 * share(random, part)) as usize);
        moments.extend((0..count).map(operation));
        moments
    }

    fn survives(&self, (name, number): (&str, i32), moment: Moment) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let parent = folder.path();
        let mut command = self.command(parent, &[]);
        let ended = match moment {
            Moment::After(time) => {
                let running = Running::new(&mut command);
                std::thread::sleep(time);
                running.signal(name);
                running.end()
            }
            Moment::Operation(at) => {
                self.shim.disturb(&mut command, at, Disturbance::Signal(number));
                Ended::of(&mut command)
            }
        };
        let there = match Tree::read(&parent.join("out")) {
            None => false,
            // A run of skip that is stopped writes the model of what it has learned until then.
            Some(_) if self.kind == UnitKind::Skip && ended.code == Some(INTERRUPTED) => true,
            Some(found) => match found.difference_of_output(&self.expected) {
                None => true,
                Some(difference) => {
                    return Err(ended.problem(format!("half an output: {difference}")));
                }
            },
        };
        if ended.signal == Some(number) && matches!(moment, Moment::After(_)) {
            // It had not begun.
            return if there {
                Err(ended.problem("it died of the signal"))
            } else {
                self.left(parent, false)
            };
        }
        ended.is_orderly()?;
        match ended.code {
            Some(0) if there => return self.left(parent, false),
            Some(INTERRUPTED) => {}
            _ => return Err(ended.problem("neither 130 nor a success")),
        }
        self.left(parent, self.kind.resumes()).map_err(|problem| ended.problem(problem))?;
        if !self.kind.resumes() {
            return Ok(());
        }
        let left = self.left(parent, false).is_err();
        let resumed = Ended::of(&mut self.command(parent, &["--resume"]));
        resumed.is_orderly()?;
        match resumed.code {
            Some(0) => {}
            Some(1) if resumed.stderr.contains("nothing to resume") && !left => {
                if !there {
                    let again = Ended::of(&mut self.command(parent, &[]));
                    if again.code != Some(0) {
                        return Err(again.problem("it failed when it was run again"));
                    }
                }
            }
            _ => return Err(resumed.problem("--resume failed")),
        }
        match Tree::read(&parent.join("out"))
            .unwrap_or_default()
            .difference_of_output(&self.expected)
        {
            Some(difference) => {
                Err(ended.problem(format!("--resume gave something else: {difference}")))
            }
            None => self.left(parent, false),
        }
    }

    /// That nothing is left, but for the folder of a run that can go on.
    fn left(&self, parent: &Path, kept: bool) -> Result<(), String> {
        let mut names: Vec<_> =
            std::fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != "out" && !(kept && name == ".out.secateur"));
        if names.is_empty() { Ok(()) } else { Err(format!("left beside --out: {names:?}")) }
    }

    /// `nohup` ignores SIGHUP for what it starts.
    fn goes_on(&self, moment: Moment) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let inner = self.command(folder.path(), &[]);
        let mut command = Command::new("bash");
        command
            .args(["-c", r#"trap '' HUP; exec "$@""#, "ignoring"])
            .arg(inner.get_program())
            .args(inner.get_args());
        command.current_dir(inner.get_current_dir().unwrap());
        let ended = match moment {
            Moment::After(time) => {
                let running = Running::new(&mut command);
                std::thread::sleep(time);
                running.signal("HUP");
                running.end()
            }
            Moment::Operation(at) => {
                // Bash has no file operations of its own here.
                self.shim.disturb(&mut command, at, Disturbance::Signal(1));
                Ended::of(&mut command)
            }
        };
        let found = Tree::read(&folder.path().join("out")).unwrap_or_default();
        match found.difference_of_output(&self.expected) {
            // Until the shell ignores it, it ends the shell.
            Some(_) if ended.signal == Some(1) && matches!(moment, Moment::After(_)) => Ok(()),
            _ if ended.code != Some(0) => Err(ended.problem("an ignored SIGHUP ended it")),
            Some(difference) => Err(ended.problem(difference)),
            None => self.left(folder.path(), false),
        }
    }
}

fn survives(kind: UnitKind) {
    let (tiny, shim) = (Tiny::new(), Shim::new());
    let scene = Scene::new(&tiny, &shim, kind);
    let count = number("SECATEUR_SIGNALS").unwrap_or(4) as usize;
    let mut random = Random::new(number("SECATEUR_SEED").unwrap_or(1));
    let mut tallies = Vec::new();
    for signal in SIGNALS {
        let moments = scene.moments(count, &mut random);
        let failures = each(&moments, |moment| {
            scene.survives(signal, *moment).map_err(|problem| format!("{moment:?}\n{problem}"))
        });
        tallies.push(tell(&format!("{} SIG{}", kind.name(), signal.0), moments.len(), &failures));
    }
    let moments = scene.moments(count.div_ceil(4), &mut random);
    let failures = each(&moments, |moment| {
        scene.goes_on(*moment).map_err(|problem| format!("{moment:?}\n{problem}"))
    });
    tallies.push(tell(&format!("{} with SIGHUP ignored", kind.name()), moments.len(), &failures));
    row(kind.name(), &tallies);
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
