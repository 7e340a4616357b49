//! Removing heads and neurons through the binary: smaller models, what becomes of them, and runs
//! that are stopped.

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

fn prune(model: &Path, out: &Path, options: &[&str]) -> Command {
    let mut command = secateur();
    command.arg("prune").arg(model).arg("--out").arg(out).args(SMALL.split(' ')).args(options);
    command
}

#[test]
fn a_smaller_model_lives_on() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let small = at("small");
    let options = ["--structured", "--sparsity", "0.3", "--allocation", "uniform"];
    succeed(&mut prune(&model("emoji-mmdit"), &small, &options));

    // Two of 8 heads and 304 of 1024 neurons, in all blocks but the first and the last; a file
    // without them.
    let inspection = inspect(&small);
    assert!(
        inspection["parameters"].as_u64().unwrap()
            < inspect(&model("emoji-mmdit"))["parameters"].as_u64().unwrap()
    );
    let manifest = json(&std::fs::read_to_string(small.join("secateur.json")).unwrap());
    assert_eq!(manifest["format_version"], 2);
    assert_eq!(manifest["clip"], "../emoji-clip", "what it said before is kept");
    let removals = manifest["compressed"]["removals"].as_object().unwrap();
    let last = inspection["blocks"].as_array().unwrap().len() - 3;
    assert!(!removals.keys().any(|name| name.starts_with("transformer_blocks.0.")));
    assert!(!removals.keys().any(|name| name.starts_with(&format!("transformer_blocks.{last}."))));
    assert_eq!(removals["transformer_blocks.1.attn"]["removed"].as_array().unwrap().len(), 2);
    assert_eq!(removals["transformer_blocks.1.ff"]["removed"].as_array().unwrap().len(), 304);
    let shape = &manifest["compressed"]["shapes"]["transformer_blocks.1.ff.net.2.weight"];
    assert_eq!((shape["was"][1].as_u64(), shape["is"][1].as_u64()), (Some(1024), Some(720)));

    // It draws, and so does the full-size model with zeros put back: the same pictures.
    let export = || {
        let mut command = secateur();
        command.arg("export").arg(&small).args(["--densify", "--quiet", "--out"]).arg(at("dense"));
        command
    };
    succeed(&mut export());
    let prompt = "red apple, noto style emoji";
    let (smaller, dense) = (draw(&small, prompt), draw(&at("dense"), prompt));
    let furthest = smaller.iter().zip(dense.iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(furthest <= Some(1), "pixels differ by {furthest:?} of 255");
    assert_eq!(inspect(&at("dense"))["parameters"], inspect(&model("emoji-mmdit"))["parameters"]);
    let manifest = json(&std::fs::read_to_string(at("dense").join("secateur.json")).unwrap());
    assert!(manifest.get("compressed").is_none());
    assert_eq!(manifest["format_version"], 1, "as before");
    assert!(!at("dense").join("report.html").exists(), "it is of the smaller model");
    let mut again = secateur();
    again.arg("export").arg(at("dense")).args(["--densify", "--quiet", "--out"]).arg(at("again"));
    let error = fail(&mut again, 1);
    assert!(error.contains("nothing was removed"), "{error}");

    // 2:4 on top of it, the hybrid.
    let hybrid = at("hybrid");
    succeed(&mut prune(&small, &hybrid, &["--pattern", "2:4"]));
    let zeros = json(&succeed(
        secateur().arg("inspect").arg(&hybrid).args(["--zeros", "--json", "--quiet"]),
    ));
    let sum: u64 = zeros["layers"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|layer| layer["zeros"].as_u64())
        .sum();
    assert!(sum > 3_000_000, "{sum} zeros");
    assert_eq!(zeros["parameters"], inspection["parameters"]);
}

#[test]
fn a_manifest_that_does_not_fit_its_model_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let small = temporary.path().join("small");
    succeed(&mut prune(&model("emoji-mmdit"), &small, &["--structured=heads", "--method", "l1"]));
    let path = small.join("secateur.json");
    let manifest = json(&std::fs::read_to_string(&path).unwrap());
    let group = "transformer_blocks.1.attn";
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        std::fs::write(&path, changed.to_string()).unwrap();
        fail(secateur().arg("inspect").arg(&small).arg("--quiet"), 1)
    };
    for (field, value, words) in [
        ("of", Value::from(9), "to have had 9 heads"),
        ("removed", json("[1, 8]"), "ascending"),
        ("removed", json("[2, 1]"), "ascending"),
        ("removed", json("[0, 1, 2]"), "to_q"),
    ] {
        let error =
            with(&|manifest| manifest["compressed"]["removals"][group][field] = value.clone());
        assert!(error.contains(words) && error.contains("small"), "{field} {value}: {error}");
    }
    let error = with(&|manifest| {
        manifest["compressed"]["removals"]["nowhere"] = json(r#"{"of": 8, "removed": [1]}"#);
    });
    assert!(error.contains("nowhere"), "{error}");
    let error = with(&|manifest| manifest["format_version"] = 3.into());
    assert!(error.contains("newer"), "{error}");
    let error = with(&|manifest| {
        manifest.as_object_mut().unwrap().remove("compressed");
    });
    assert!(error.contains("to_q"), "{error}");
}

#[test]
fn what_cannot_be_removed_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("out");
    for (options, code, words) in [
        (["--structured", "--method", "wanda"].as_slice(), 2, "cannot remove heads"),
        (&["--method", "l1"], 2, "--structured"),
        (&["--structured", "--sparsity", "1"], 2, "(0, 1)"),
        (&["--structured", "--pattern", "2:4"], 2, "cannot be used with"),
        (&["--structured=feet"], 2, "heads"),
        (&["--structured", "--keep-ends", "9"], 2, "--keep-ends"),
        (&["--structured=heads", "--sparsity", "0.01"], 2, "too low"),
    ] {
        let error = fail(&mut prune(&model("emoji-mmdit"), &out, options), code);
        assert!(error.contains(words), "{options:?}: {error}");
        assert!(
            entries(temporary.path()).is_empty(),
            "{options:?} left {:?}",
            entries(temporary.path())
        );
    }
}

/// A run in four packages that is killed goes on, and gives the same bytes as one that was not.
#[test]
#[cfg(unix)]
fn a_killed_run_goes_on() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let options = ["--structured", "--allocation", "uniform", "--packages", "4"];
    let run = |name: &str, more: &[&str]| {
        let mut command = prune(&model("emoji-mmdit"), &at(name), &options);
        command.args(more);
        command
    };
    succeed(&mut run("whole", &[]));
    let unfinished = at(".stopped.secateur/progress");
    let mut child = run("stopped", &[]).stderr(Stdio::null()).spawn().unwrap();
    while !unfinished.join("package-0001.json").exists() {
        std::thread::sleep(Duration::from_millis(5));
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let error = fail(&mut run("stopped", &[]), 1);
    assert!(error.contains("--resume"), "{error}");
    for (other, words) in [
        (["--seed", "7"].as_slice(), "seed 0, now 7"),
        (&["--samples", "3"], "samples 2, now 3"),
        (&["--method", "l1"], "method obs, now l1"),
        (&["--sparsity", "0.4"], "30 % of heads and neurons, now 40 %"),
        (&["--batch", "1"], "batch 8, now 1"),
        (&["--packages", "3"], "the plan"),
    ] {
        let error = fail(run("stopped", &["--resume"]).args(other), 1);
        assert!(error.contains(words), "{other:?}: {error}");
    }
    // What a write that was cut short leaves is not taken for a package.
    std::fs::write(unfinished.join("package-0003.tensors"), "cut").unwrap();
    std::fs::write(unfinished.join(".0123.tmp"), "{").unwrap();
    succeed(&mut run("stopped", &["--resume"]));
    assert_eq!(entries(temporary.path()), ["stopped", "whole"], "what the killed run left is gone");
    let weights = |name: &str| {
        std::fs::read(at(name).join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
    };
    assert!(weights("whole") == weights("stopped"), "the weights differ");
    let error = fail(run("another", &["--resume"]).arg("--quiet"), 1);
    assert!(error.contains("nothing to resume"), "{error}");
}

/// A run that is killed after its shares were found goes on with the same ones, to the same bytes;
/// a request that does not fit it leaves it as it is.
#[test]
#[cfg(unix)]
fn a_killed_allocation_goes_on() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    // The lowest share that is tried, 0.7 - 0.3, has no short decimal.
    let options = [
        "--sparsity",
        "0.7",
        "--allocation",
        "parameters",
        "--include",
        "*.ff.*",
        "--packages",
        "2",
    ];
    let run = |name: &str, more: &[&str]| {
        let mut command = prune(&model("emoji-mmdit"), &at(name), &options);
        command.args(more);
        command
    };
    succeed(&mut run("whole", &[]));
    let settings = at(".stopped.secateur/progress").join("settings.json");
    let mut child = run("stopped", &[]).stderr(Stdio::null()).spawn().unwrap();
    while !settings.exists() {
        std::thread::sleep(Duration::from_millis(2));
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let found = std::fs::read(&settings).unwrap();
    let error = fail(&mut run("stopped", &["--resume", "--seed", "7"]), 1);
    assert!(error.contains("seed 0, now 7") && error.contains("--resume goes on"), "{error}");
    assert!(std::fs::read(&settings).unwrap() == found, "the shares that were found are lost");
    succeed(&mut run("stopped", &["--resume"]));
    let weights = |name: &str| {
        std::fs::read(at(name).join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
    };
    assert!(weights("whole") == weights("stopped"), "the weights differ");
}

/// As many weights go in total as with the same share everywhere, but not the same share of every
/// layer: where it is asked for, and by default with heads and neurons.
#[test]
fn shares_are_allocated() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let allocated = |name: &str, options: &[&str]| {
        let options = [&["--json"], options].concat();
        json(&succeed(&mut prune(&model("emoji-mmdit"), &at(name), &options)))
    };
    let report = allocated(
        "anywhere",
        &["--allocation", "parameters", "--sparsity", "0.5", "--include", "*.ff.*"],
    );
    let layers = report["layers"].as_array().unwrap();
    let number = |layer: &Value, key: &str| layer[key].as_f64().unwrap();
    let weights = |layer: &Value| number(layer, "rows") * number(layer, "columns");
    let total: f64 = layers.iter().map(weights).sum();
    let zeros: f64 = layers.iter().map(|layer| weights(layer) * number(layer, "sparsity")).sum();
    assert!((zeros / total - 0.5).abs() < 0.005, "{} of the weights are zero", zeros / total);
    let shares: Vec<f64> = layers.iter().map(|layer| number(layer, "sparsity")).collect();
    let (least, most) =
        (shares.iter().copied().fold(1.0, f64::min), shares.iter().copied().fold(0.0, f64::max));
    assert!(least < 0.45 && most > 0.55, "shares of {least} to {most}");

    let some = ["--structured", "--include", "transformer_blocks.[1-3].*"];
    succeed(&mut prune(
        &model("emoji-mmdit"),
        &at("uniform"),
        &[&some[..], &["--allocation", "uniform"]].concat(),
    ));
    let settings = &allocated("groups", &some)["settings"];
    assert_eq!(settings["allocation"], "parameters");
    let parameters = |name: &str| inspect(&at(name))["parameters"].as_f64().unwrap();
    let difference = parameters("groups") / parameters("uniform") - 1.0;
    assert!((0.0..0.005).contains(&difference), "parameters differ by {difference}");
    assert_ne!(
        std::fs::read(at("groups").join("secateur.json")).unwrap(),
        std::fs::read(at("uniform").join("secateur.json")).unwrap()
    );
}

/// Statistics that an allocation gathered are saved like others; a group is chosen by its name or a
/// layer's.
#[test]
fn statistics_of_an_allocation_serve_again() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let statistics = at("statistics");
    let statistics = statistics.to_str().unwrap();
    let options = [
        "--structured=neurons",
        "--include",
        "transformer_blocks.1.ff.*",
        "--include",
        "*.2.ff_context",
    ];
    let run = |name: &str, more: &[&str]| {
        let options = [&options, more].concat();
        succeed(&mut prune(&model("emoji-mmdit"), &at(name), &options));
        let manifest = json(&std::fs::read_to_string(at(name).join("secateur.json")).unwrap());
        manifest["compressed"]["removals"].as_object().unwrap().clone()
    };
    run("first", &["--allocation", "parameters", "--save-statistics", statistics]);
    let uniform = run("second", &["--allocation", "uniform", "--statistics", statistics]);
    assert_eq!(
        uniform.keys().collect::<Vec<_>>(),
        ["transformer_blocks.1.ff", "transformer_blocks.2.ff_context"]
    );
}
