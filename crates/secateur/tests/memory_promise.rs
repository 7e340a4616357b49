//! What a run is said to hold at most, against the most that its process held.
//! `SECATEUR_MEMORY_TABLE=1` runs all methods on all bundled models, and other settings.

#![cfg(target_os = "linux")]

use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// A command with its options.
type Case = &'static [&'static str];

/// One for each stage that can be the largest, spread over the models.
const FEW: [(&str, Case); 12] = [
    ("emoji-mmdit", &["prune"]),
    ("emoji-mmdit", &["prune", "--memory=250MiB"]),
    ("emoji-mmdit", &["prune", "--packages=4"]),
    ("emoji-mmdit", &["prune", "--structured", "--method=taylor", "--allocation=uniform"]),
    ("emoji-unet", &["prune", "--method=wanda", "--pattern=2:4"]),
    ("emoji-unet", &["prune", "--weighting=measured"]),
    ("emoji-unet", &["skip", "--iterations=1", "--exchanges=1"]),
    ("emoji-dit", &["prune", "--allocation=parameters"]),
    ("emoji-dit", &["prune", "--structured"]),
    ("emoji-dit", &["slim"]),
    ("emoji-dit", &["prune", "--batch=1", "--report-samples=24", "--threads=1"]),
    ("emoji-dit", &["prune", "--batch=512"]),
];

const METHODS: [Case; 17] = [
    &["prune"],
    &["prune", "--method=wanda"],
    &["prune", "--method=dsnot"],
    &["prune", "--method=dsnot-hessian"],
    &["prune", "--method=magnitude"],
    &["prune", "--pattern=2:4"],
    &["prune", "--method=magnitude", "--pattern=2:4"],
    &["prune", "--structured"],
    &["prune", "--structured", "--method=l1"],
    &["prune", "--structured", "--method=taylor"],
    &["prune", "--weighting=measured"],
    &["prune", "--allocation=parameters"],
    &["prune", "--packages=4"],
    &["prune", "--save-statistics=STATISTICS"],
    &["slim"],
    &["slim", "--budget=0.05", "--report-samples=0", "--carry-statistics=STATISTICS"],
    &["skip", "--iterations=2", "--exchanges=2"],
];

const SETTINGS: [Case; 13] = [
    &["prune", "--batch=1"],
    &["prune", "--memory=250MiB"],
    &["prune", "--batch=16", "--samples=16"],
    &["prune", "--batch=64"],
    &["prune", "--method=magnitude", "--packages=8"],
    &["prune", "--height=96", "--width=96"],
    &["prune", "--structured", "--method=taylor", "--height=96", "--width=96"],
    &[
        "skip",
        "--iterations=1",
        "--exchanges=1",
        "--batch=8",
        "--samples=8",
        "--height=96",
        "--width=96",
    ],
    &["prune", "--threads=1"],
    &["prune", "--threads=4"],
    &["prune", "--report-samples=24"],
    &["prune", "--report-samples=0"],
    &["prune", "--structured", "--method=taylor", "--batch=16", "--samples=16"],
];

const MODELS: [&str; 3] = ["emoji-mmdit", "emoji-unet", "emoji-dit"];
/// Of the peak over what was said.
const TOLERANCE: f64 = 0.15;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What was said, and what was held, in bytes.
fn measure(model: &str, case: Case, folder: &Path) -> (f64, f64) {
    let run = |last: &[&str]| {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut command = Command::new(env!("CARGO_BIN_EXE_secateur"));
        command.current_dir(project).arg(case[0]).arg(Path::new("models").join(model));
        // Those of the case come last, but for the command's own name.
        let given = |option: &&&str| {
            let name = option.split('=').next().unwrap_or_default();
            !case.iter().any(|own| own.split('=').next() == Some(name))
        };
        let usual =
            ["--samples=4", "--steps=3", "--report-samples=2", "--threads=2", "--quiet", "--json"];
        command.args(usual.iter().filter(given));
        let statistics = folder.join("statistics").display().to_string();
        command
            .args(case[1..].iter().map(|option| option.replace("STATISTICS", &statistics)))
            .args(last);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let said = json(&run(&["--dry-run"]))["memory"]["total"].as_f64().unwrap();
    let out = folder.join("out");
    run(&["--out", out.to_str().unwrap()]);
    let report = json(&std::fs::read_to_string(out.join("report.json")).unwrap());
    (said, report["peak_bytes"].as_f64().unwrap())
}

#[test]
#[expect(clippy::print_stdout, reason = "a table for people")]
fn a_process_holds_what_it_is_said_to_hold() {
    let cases: Vec<(&str, Case)> = match std::env::var_os("SECATEUR_MEMORY_TABLE") {
        None => FEW.to_vec(),
        Some(_) => {
            let all = || METHODS.iter().chain(&SETTINGS);
            MODELS.iter().flat_map(|model| all().map(move |case| (*model, *case))).collect()
        }
    };
    // Small pages hold less that is not used; what is said is for large ones.
    let pages =
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let large = pages.contains("[madvise]") || pages.contains("[always]");
    let mut misses = Vec::new();
    for (model, case) in cases {
        let folder = tempfile::tempdir().unwrap();
        let (said, held) = measure(model, case, folder.path());
        let (ratio, mebibytes) = (held / said, |bytes: f64| bytes / f64::from(1 << 20));
        let (case, said, held) = (case.join(" "), mebibytes(said), mebibytes(held));
        let line =
            format!("{model:12} {case:55} said {said:6.1} MiB, held {held:6.1} MiB, {ratio:.2}");
        println!("{line}");
        if ratio > 1.0 + TOLERANCE || (large && ratio < 1.0 - TOLERANCE) {
            misses.push(line);
        }
    }
    assert!(misses.is_empty(), "{}", misses.join("\n"));
}
