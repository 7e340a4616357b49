//! Several processes that write one --out: none damages the work of another.
//!
//! `SECATEUR_TOGETHER=N` sets the number of rounds of each kind, `SECATEUR_SEED` when they start.

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
use harness::tiny::{Tiny, UnitKind};
use harness::tree::Tree;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The command with a seed of its own, so that outputs can be told apart.
fn command(tiny: &Tiny, kind: UnitKind, out: &Path, seed: usize, flags: &[&str]) -> Command {
    let mut command = tiny.command(kind, out);
    command.arg(format!("--seed={seed}")).args(flags);
    command
}

/// A command, what it makes by itself of each seed, and how long that takes.
struct Alone<'a> {
    tiny: &'a Tiny,
    kind: UnitKind,
    outputs: Vec<Tree>,
    time: Duration,
}

/// How many processes there are at most.
const MOST: usize = 3;

impl<'a> Alone<'a> {
    fn new(tiny: &'a Tiny, kind: UnitKind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut outputs, mut times) = (Vec::new(), Vec::new());
        for seed in 0..=MOST {
            let out = folder.path().join(seed.to_string());
            let ended = Ended::of(&mut command(tiny, kind, &out, seed, &[]));
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            outputs.push(Tree::read(&out).unwrap());
            times.push(ended.time);
        }
        Self { tiny, kind, outputs, time: times.into_iter().min().unwrap() }
    }

    fn command(&self, parent: &Path, seed: usize, flags: &[&str]) -> Command {
        command(self.tiny, self.kind, &parent.join("out"), seed, flags)
    }

    /// Whose output is there, whole: of one seed, or of several that give the same.
    fn whole(&self, parent: &Path) -> Result<Vec<usize>, String> {
        let Some(found) = Tree::read(&parent.join("out")) else {
            return Err("there is no output".into());
        };
        let differences: Vec<_> =
            self.outputs.iter().map(|output| found.difference_of_output(output)).collect();
        let seeds: Vec<usize> =
            (0..differences.len()).filter(|&seed| differences[seed].is_none()).collect();
        if seeds.is_empty() {
            Err(format!("the output is that of no process: {differences:?}"))
        } else {
            Ok(seeds)
        }
    }
}

/// That nothing is beside the output.
fn is_clean(parent: &Path) -> Result<(), String> {
    let mut names: Vec<_> =
        std::fs::read_dir(parent).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| name != "out");
    if names.is_empty() { Ok(()) } else { Err(format!("left beside --out: {names:?}")) }
}

/// Processes that start at these moments.
#[derive(Debug)]
struct Round {
    force: bool,
    starts: Vec<Duration>,
}

/// How processes of a round ended.
#[derive(Default)]
struct Figures {
    succeeded: usize,
    refused: usize,
    too_late: usize,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.succeeded += other.succeeded;
        self.refused += other.refused;
        self.too_late += other.too_late;
    }
}

impl Round {
    fn new(random: &mut Random, count: usize, force: bool, time: Duration) -> Self {
        // Some begin at the same moment, some after another has ended.
        let mut starts: Vec<_> =
            (1..count).map(|_| time.mul_f64((1.3 * random.share() - 0.1).max(0.0))).collect();
        starts.push(Duration::ZERO);
        starts.sort();
        Self { force, starts }
    }

    fn run(&self, alone: &Alone<'_>) -> Result<Figures, String> {
        let folder = tempfile::tempdir().unwrap();
        let (parent, out) = (folder.path(), folder.path().join("out"));
        let flags: &[&str] = if self.force { &["--force"] } else { &[] };
        if self.force {
            alone.outputs[MOST].write(&out);
        }
        let over = AtomicBool::new(false);
        // What is replaced is there all the while.
        let watch = || {
            let mut gone = false;
            while !over.load(Ordering::Relaxed) {
                gone |= !out.is_dir();
                std::thread::sleep(Duration::from_micros(300));
            }
            gone
        };
        let (ended, gone) = std::thread::scope(|scope| {
            let watch = scope.spawn(watch);
            let begun = Instant::now();
            let start = |(seed, start): (usize, &Duration)| {
                std::thread::sleep(start.saturating_sub(begun.elapsed()));
                let running = Running::new(&mut alone.command(parent, seed, flags));
                (running.id(), scope.spawn(|| running.end()))
            };
            let runs: Vec<_> = self.starts.iter().enumerate().map(start).collect();
            let ended: Vec<(u32, Ended)> =
                runs.into_iter().map(|(id, run)| (id, run.join().unwrap())).collect();
            over.store(true, Ordering::Relaxed);
            (ended, watch.join().unwrap())
        });
        let (mut figures, mut winners) = (Figures::default(), Vec::new());
        for (seed, (id, run)) in ended.iter().enumerate() {
            run.is_orderly()?;
            let other = |named: u32| named != *id && ended.iter().any(|(id, _)| *id == named);
            match (run.code, run.stderr.split_once("is being written by")) {
                (Some(0), _) => winners.push(seed),
                (Some(1), Some((_, rest))) if numbers(rest).any(other) => figures.refused += 1,
                (Some(1), Some(_)) => {
                    return Err(run.problem("it does not name the process that is at work"));
                }
                (Some(1), None) if !self.force && run.stderr.contains("exists already") => {
                    figures.too_late += 1
                }
                _ => return Err(run.problem("it neither succeeded nor was refused")),
            }
        }
        figures.succeeded = winners.len();
        if winners.is_empty() || !self.force && winners.len() != 1 {
            return Err(format!("{} of {} processes succeeded", winners.len(), ended.len()));
        }
        let found = alone.whole(parent)?;
        if !winners.iter().any(|winner| found.contains(winner)) {
            return Err(format!(
                "the output is that of {found:?}, and these succeeded: {winners:?}"
            ));
        }
        if gone && self.force {
            return Err("there was a moment without a folder at --out".into());
        }
        is_clean(parent)?;
        Ok(figures)
    }
}

/// The numbers in a text.
fn numbers(text: &str) -> impl Iterator<Item = u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok())
}

/// A process that is killed, and another that starts just then.
fn takes_over(alone: &Alone<'_>, force: bool, after: Duration) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let parent = folder.path();
    let flags: &[&str] = if force { &["--force"] } else { &[] };
    if force {
        alone.outputs[MOST].write(&parent.join("out"));
    }
    let killed = Running::new(&mut alone.command(parent, 0, flags));
    std::thread::sleep(after);
    killed.signal("KILL");
    // Not waited for: what the first held may still be held.
    let next = Running::new(&mut alone.command(parent, 1, flags));
    let killed = killed.end();
    let next = next.end();
    next.is_orderly()?;
    let seed = match next.code {
        Some(0) => 1,
        // The first came to its end, or got so far that it could go on.
        Some(1) if next.stderr.contains("exists already") && !force => 0,
        Some(1) if next.stderr.contains("--resume") && alone.kind.resumes() => {
            let resumed =
                Ended::of(&mut alone.command(parent, 0, &[flags, &["--resume"]].concat()));
            resumed.is_orderly()?;
            if resumed.code != Some(0) {
                let told = next.problem("--resume failed, which this run told to use");
                return Err(resumed.problem(format!("{told}\nand then:")));
            }
            0
        }
        // The first was not dead yet.
        Some(1) if next.stderr.contains("is being written by") => {
            let again = Ended::of(&mut alone.command(parent, 1, &[flags, &["--force"]].concat()));
            if again.code != Some(0) {
                return Err(again.problem("--force failed after the run before it had died"));
            }
            1
        }
        _ => {
            return Err(next.problem(format!(
                "it does not take over from one that was killed ({:?})",
                killed.signal
            )));
        }
    };
    let found = alone.whole(parent)?;
    if !found.contains(&seed) {
        return Err(next.problem(format!(
            "the output is that of seed {found:?} where {seed} was the last to succeed"
        )));
    }
    // What a run left that came to its end just before the kill goes with the next run.
    if seed == 0 && next.stderr.contains("exists already") {
        let again = Ended::of(&mut alone.command(parent, 1, &["--force"]));
        again.is_orderly()?;
        if again.code != Some(0) {
            return Err(again.problem("--force failed"));
        }
    }
    is_clean(parent)
}

fn at_once(kind: UnitKind) {
    let tiny = Tiny::new();
    let alone = Alone::new(&tiny, kind);
    let rounds = number("SECATEUR_TOGETHER").unwrap_or(5) as usize;
    let mut random = Random::new(number("SECATEUR_SEED").unwrap_or(1));
    let mut tallies = Vec::new();
    for force in [false, true] {
        for count in 2..=MOST {
            let cases: Vec<Round> =
                (0..rounds).map(|_| Round::new(&mut random, count, force, alone.time)).collect();
            let sum = Mutex::new(Figures::default());
            let failures = each(&cases, |round| {
                let figures =
                    round.run(&alone).map_err(|problem| format!("{round:?}\n{problem}"))?;
                sum.lock().unwrap().add(&figures);
                Ok(())
            });
            let sum = sum.into_inner().unwrap();
            let what = format!(
                "{count} x {}{} ({} succeeded, {} refused, {} too late)",
                kind.name(),
                if force { " --force" } else { "" },
                sum.succeeded,
                sum.refused,
                sum.too_late
            );
            tallies.push(tell(&what, cases.len(), &failures));
        }
    }
    for force in [false, true] {
        let cases: Vec<Duration> =
            (0..rounds).map(|_| alone.time.mul_f64(1.1 * random.share())).collect();
        let failures = each(&cases, |after| {
            takes_over(&alone, force, *after)
                .map_err(|problem| format!("killed after {after:?}: {problem}"))
        });
        let what = format!(
            "{}{} after one that was killed",
            kind.name(),
            if force { " --force" } else { "" }
        );
        tallies.push(tell(&what, cases.len(), &failures));
    }
    row(kind.name(), &tallies);
}

tests! {
    at_once {
        generate(UnitKind::Generate);
        prune(UnitKind::Prune);
        skip(UnitKind::Skip);
    }
}
