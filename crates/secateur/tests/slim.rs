//! SlimDiff through the binary: smaller models, what becomes of them, and requests that cannot be
//! met.

mod common;
#[path = "common/looks.rs"]
mod looks;

use common::{entries, fail, model, secateur, succeed};
use looks::{draw, inspect, json};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SMALL: &str = "--samples 2 --steps 3 --report-samples 0 --quiet";

fn slim(model: &Path, out: &Path, options: &[&str]) -> Command {
    let mut command = secateur();
    command.arg("slim").arg(model).arg("--out").arg(out).args(SMALL.split(' ')).args(options);
    command
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap()
}

#[test]
fn a_slim_model_lives_on() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let dit = model("emoji-dit");
    let before = inspect(&dit);
    let shares = |name: &str| {
        1.0 - number(&inspect(&at(name)), "parameters") / number(&before, "parameters")
    };
    let report = json(&succeed(&mut slim(
        &dit,
        &at("small"),
        &["--budget", "0.15", "--samples", "16", "--json"],
    )));
    let share = shares("small");
    assert!((share - 0.15).abs() < 0.002, "{share} of the parameters went");
    assert!(number(&inspect(&at("small")), "macs") < 0.9 * number(&before, "macs"));
    let kinds: std::collections::BTreeSet<&str> = report["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| group["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds.into_iter().collect::<Vec<_>>(),
        ["neurons", "query-key dimensions", "value-output dimensions"]
    );
    assert!(report["groups"].as_array().unwrap().iter().all(|group| number(group, "error") < 0.5));
    let manifest = json(&std::fs::read_to_string(at("small").join("secateur.json")).unwrap());
    let removals = manifest["compressed"]["removals"].as_object().unwrap();
    assert!(removals.keys().any(|name| name.ends_with(".attn1.query_key")), "{removals:?}");
    let tree = succeed(secateur().arg("inspect").arg(at("small")).args(["--tree", "--quiet"]));
    assert!(tree.contains("rank"), "{tree}");

    // With zeros put back it is of the full size, and draws the same pictures.
    let export = ["--densify", "--quiet", "--out"];
    succeed(secateur().arg("export").arg(at("small")).args(export).arg(at("dense")));
    assert_eq!(inspect(&at("dense"))["parameters"], before["parameters"]);
    let (smaller, dense) = (draw(&at("small"), "3"), draw(&at("dense"), "3"));
    let furthest = smaller.iter().zip(dense.iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(furthest <= Some(1), "pixels differ by {furthest:?} of 255");

    // Slim again, heads and neurons, and 2:4, on top of it.
    succeed(&mut slim(
        &at("small"),
        &at("smaller"),
        &["--budget", "0.05", "--allocation", "softmax"],
    ));
    assert!(shares("smaller") > share + 0.03);
    let prune = |from: &str, to: &str, options: &[&str]| {
        succeed(
            secateur()
                .arg("prune")
                .arg(at(from))
                .arg("--out")
                .arg(at(to))
                .args(SMALL.split(' '))
                .args(options),
        );
    };
    prune("small", "structured", &["--structured", "--allocation", "uniform"]);
    assert!(shares("structured") > share + 0.03);
    succeed(&mut slim(
        &at("structured"),
        &at("structured-slim"),
        &["--budget", "0.05", "--allocation", "uniform"],
    ));
    prune("structured-slim", "hybrid", &["--pattern", "2:4"]);
    draw(&at("hybrid"), "3");

    // Low rank would fill the zeros in.
    let error = fail(&mut slim(&at("hybrid"), &at("no"), &["--budget", "0.05"]), 1);
    assert!(error.contains("50 % of its weights are zero") && error.contains("first"), "{error}");
    assert!(!at("no").exists());
}

#[test]
fn by_multiply_accumulates_and_on_what_attention_makes() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let mmdit = model("emoji-mmdit");
    let options = [
        "--speedup",
        "1.15",
        "--rows",
        "attention",
        "--modules",
        "value-output,query-key",
        "--json",
    ];
    let report = json(&succeed(&mut slim(&mmdit, &at("small"), &options)));
    let notes = report["notes"].as_array().unwrap();
    let barred = |note: &Value| {
        note.as_str().unwrap().contains("attentions stay as they are: a norm stands between them")
    };
    assert!(notes.iter().any(barred), "{notes:?}");
    let groups = report["groups"].as_array().unwrap();
    assert!(groups.iter().all(|group| group["kind"] == "value-output dimensions"));
    let speedup = number(&inspect(&mmdit), "macs") / number(&inspect(&at("small")), "macs");
    assert!((speedup / 1.15 - 1.0).abs() < 0.01, "{speedup} times fewer");
}

#[test]
fn what_cannot_be_met_says_what_can() {
    let temporary = tempfile::tempdir().unwrap();
    let refused = |model_name: &str, options: &[&str]| {
        let error = fail(&mut slim(&model(model_name), &temporary.path().join("no"), options), 2);
        assert!(entries(temporary.path()).is_empty());
        error
    };
    let error = refused("emoji-unet", &["--budget", "0.3"]);
    assert!(
        error.contains("30.0 % of the parameters cannot go") && error.contains("is the largest"),
        "{error}"
    );
    let largest = error.split("--budget ").last().unwrap().split(' ').next().unwrap();
    let mut dry = slim(
        &model("emoji-unet"),
        &temporary.path().join("no"),
        &["--budget", largest, "--dry-run"],
    );
    succeed(&mut dry);
    let error = refused("emoji-dit", &["--speedup", "40"]);
    assert!(error.contains("--speedup") && error.contains("is the largest"), "{error}");
    assert!(refused("emoji-dit", &["--speedup", "0.9"]).contains("not more than 1"));
    for budget in ["0", "1", "1.5"] {
        assert!(refused("emoji-dit", &["--budget", budget]).contains("not in (0, 1)"), "{budget}");
    }
}

/// A run that is killed after its first package goes on to the same bytes as one that was not, and
/// only as the same run.
#[test]
#[cfg(unix)]
fn a_killed_run_goes_on() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let options = ["--budget", "0.15", "--allocation", "uniform", "--packages", "3"];
    let run = |name: &str, more: &[&str]| {
        slim(&model("emoji-dit"), &at(name), &[&options, more].concat())
    };
    succeed(&mut run("whole", &[]));
    let unfinished = at(".stopped.secateur/progress");
    let mut child = run("stopped", &[]).stderr(Stdio::null()).spawn().unwrap();
    while !unfinished.join("package-0000.json").exists() {
        std::thread::sleep(Duration::from_millis(5));
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for (other, words) in [
        (["--neurons", "leverage"], "method slim, now slim (leverage)"),
        (["--rows", "attention"], "now slim (attention)"),
        (["--modules", "feed-forward"], "now"),
    ] {
        let error = fail(&mut run("stopped", &[other.as_slice(), &["--resume"]].concat()), 1);
        assert!(error.contains(words), "{other:?}: {error}");
    }
    succeed(&mut run("stopped", &["--resume"]));
    let weights = |name: &str| {
        std::fs::read(at(name).join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
    };
    assert!(weights("whole") == weights("stopped"), "the weights differ");
}

/// Second moments of fewer rows than an input is wide cannot tell all its directions: the note has
/// the numbers, of the input that has the fewest for its width.
#[test]
fn too_few_samples_are_told() {
    let temporary = tempfile::tempdir().unwrap();
    let notes = |samples: &str, stride: &str| {
        let options =
            ["--budget", "0.05", "--dry-run", "--samples", samples, "--token-stride", stride];
        succeed(&mut slim(&model("emoji-dit"), &temporary.path().join("no"), &options))
    };
    let told = notes("1", "16");
    let note = told.lines().find(|line| line.contains("too few calibration samples")).unwrap();
    // With and without the label, of 64 tokens every 16th, at each of the three steps.
    let rows = 2 * (64 / 16) * 3;
    let worst = ["transformer_blocks.0.ff.net.2", &format!(" {rows} rows"), " 768 wide"];
    assert!(worst.iter().all(|worst| note.contains(worst)), "{note}");
    assert!(!notes("16", "1").contains("too few"));
}
