//! What a run tells while it works: by a bar in a terminal, by lines where there is none.

#![cfg(target_os = "linux")]

#[expect(dead_code, reason = "shared with other tests")]
mod common;

use common::secateur;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a bar or a line says.
#[derive(Clone, Debug)]
struct Told {
    /// Seconds, where it is said how many are left.
    left: Option<f64>,
    stage: String,
}

/// Such as "3 min" in seconds.
fn seconds(text: &str) -> f64 {
    let (number, unit) = text.split_once(' ').unwrap();
    let unit = match unit {
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        "days" => 86400.0,
        unit => panic!("{unit:?} is no unit of time"),
    };
    unit * number.parse::<f64>().unwrap()
}

/// What is said behind the percentage of a bar.
fn of_bar(line: &str) -> Option<Told> {
    let (_, told) = line.split_once("% ")?;
    let (left, stage) = match told.split_once(" left ") {
        Some((left, stage)) => (Some(seconds(left.trim())), stage),
        None => (None, told),
    };
    Some(Told { left, stage: stage.trim().to_owned() })
}

/// What a run draws in a terminal, until a stage begins, where Ctrl-C is given, or to its end.
fn drawn_by(command: &Command, last: Option<&str>) -> Vec<Told> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    // As wide as all that is drawn.
    let words = format!("stty cols 200; exec {}", words.join(" "));
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &words, "/dev/null"]).env("TERM", "xterm");
    terminal.current_dir(common::project()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = terminal.spawn().unwrap();
    let (mut keys, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut told, mut line, mut stopped) = (Vec::new(), Vec::new(), false);
    let mut buffer = [0; 4096];
    loop {
        let count = output.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        for byte in &buffer[..count] {
            if stopped {
                break;
            }
            // One is drawn over the other.
            if !b"\r\n".contains(byte) {
                line.push(*byte);
            } else if let Some(now) = of_bar(&String::from_utf8_lossy(&std::mem::take(&mut line))) {
                stopped = last.is_some_and(|last| now.stage.starts_with(last));
                told.push(now);
                if stopped {
                    // Once: with keys that nobody reads any more, `script` does not end.
                    keys.write_all(b"\x03").unwrap();
                }
            }
        }
    }
    let code = if stopped { 130 } else { 0 };
    assert_eq!(child.wait().unwrap().code(), Some(code), "{told:?}");
    told
}

fn prune(out: &Path, options: &[&str]) -> Command {
    let mut command = secateur();
    command.args(["prune", "models/emoji-dit", "--report-samples=0", "--out"]).arg(out);
    command.args(options);
    command
}

/// What is first said to be left in a stage.
fn first_left(told: &[Told], stage: &str) -> f64 {
    let mut told_of_it = told.iter().filter(|told| told.stage.starts_with(stage));
    told_of_it.find_map(|told| told.left).unwrap_or_else(|| panic!("no {stage}: {told:?}"))
}

/// Before the first work, and when a stage begins, what was foreseen is left.
#[test]
fn a_bar_tells_what_is_foreseen() {
    let temporary = tempfile::tempdir().unwrap();
    let labels = temporary.path().join("labels.txt");
    std::fs::write(&labels, "1\n".repeat(2000)).unwrap();
    let labels = format!("--prompts={}", labels.display());
    let long = prune(&temporary.path().join("out"), &["--steps=50", &labels]);
    let told = drawn_by(&long, Some("calibrate"));
    let (whole, calibration) = (first_left(&told, "load"), first_left(&told, "calibrate"));
    assert!(whole > 5.0, "{whole} s for 100000 steps");
    assert!((0.5..2.0).contains(&(calibration / whole)), "{told:?}");
}

/// Nothing is left when nothing comes any more.
#[test]
fn a_bar_comes_to_its_end() {
    let temporary = tempfile::tempdir().unwrap();
    let told =
        drawn_by(&prune(&temporary.path().join("out"), &["--steps=8", "--samples=32"]), None);
    let whole = first_left(&told, "load");
    let of = |stage: &str| told.iter().filter(|told| told.stage.starts_with(stage)).count();
    assert!(of("calibrate") > 1 && of("save") > 0, "{told:?}");
    let left =
        told.iter().filter(|told| told.stage.starts_with("save")).filter_map(|told| told.left);
    assert!(left.fold(0.0, f64::max) <= whole / 2.0, "{told:?}");
}

/// Without a terminal, a stage that takes more than ten seconds tells how far it is, and when it
/// will end if it goes on like that. The process is held for so long.
#[test]
fn long_stages_are_told_line_by_line() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = secateur();
    command.args(["generate", "models/emoji-dit", "--samples=4", "--batch=1", "--steps=1000"]);
    command.arg("--out").arg(temporary.path().join("out"));
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let signal = |name: &str| {
        let id = child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    };
    // What comes before it is printed when it ends.
    assert!(lines.any(|line| line.starts_with("load ")));
    let drawing = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let mut held = || {
        signal("-STOP");
        std::thread::sleep(Duration::from_millis(10_100));
        let least = drawing.elapsed().as_secs_f64() - 0.5;
        signal("-CONT");
        (lines.next().unwrap(), least, begun.elapsed().as_secs_f64())
    };
    let (mut line, mut least, mut most) = held();
    // A busy machine may not have come to the first step before.
    if line.starts_with("generate 1/") {
        (line, least, most) = held();
    }
    signal("-INT");
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130), "{line}");

    let (done, rest) = line.strip_prefix("generate ").unwrap().split_once('/').unwrap();
    let (total, left) = (rest.split(' ').next().unwrap(), rest.rsplit(", ").next().unwrap());
    let (done, total) = (done.parse::<f64>().unwrap(), total.parse::<f64>().unwrap());
    assert!(total == 4000.0 && done < total / 2.0, "{line}");
    let left = left.strip_suffix(" left").expect(&line);
    // The step that has just ended was not counted yet.
    let foreseen = |elapsed: f64| elapsed * (total - (done - 1.0)) / (done - 1.0);
    let (_, unit) = left.split_once(' ').unwrap();
    let rounding = seconds(&format!("0.5 {unit}"));
    let range = foreseen(least) - rounding..=foreseen(most) + rounding;
    assert!(range.contains(&seconds(left)), "{line}: not in {range:?}");
}
