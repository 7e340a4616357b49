//! DiP-GO through the binary: a model that skips, what becomes of it, and requests that cannot be
//! met.

mod common;
use common::{entries, fail, model, secateur, succeed};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

const SMALL: &str = "--samples 4 --steps 6 --iterations 4 --exchanges 4 --report-samples 2";

fn skip(model_name: &str, out: &Path, options: &[&str]) -> Command {
    let mut command = secateur();
    command
        .arg("skip")
        .arg(model(model_name))
        .arg("--out")
        .arg(out)
        .args(SMALL.split(' '))
        .args(options);
    command
}

#[test]
fn a_model_that_skips_lives_on() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let report = json(&succeed(&mut skip(
        "emoji-dit",
        &at("skips"),
        &["--keep", "0.5", "--sampler", "dpm-solver", "--quiet", "--json"],
    )));
    let skipping = &report["skipping"];
    let kept = skipping["kept"].as_f64().unwrap();
    assert!(kept <= 0.5 && kept > 0.2, "{kept} of the work is kept");
    assert_eq!(skipping["computed"].as_array().unwrap().len(), 6);
    assert_eq!(skipping["history"].as_array().unwrap().len(), 4);
    let ways = skipping["ways"].as_array().unwrap();
    let names: Vec<&str> = ways.iter().map(|way| way["name"].as_str().unwrap()).collect();
    for name in ["learned", "calls evenly spread", "fewer steps: 3", "random"] {
        assert!(names.iter().any(|known| known.starts_with(name)), "{name} is none of {names:?}");
    }
    assert!(
        ways.iter()
            .all(|way| way["kept"].as_f64().unwrap() <= 0.5
                && way["speed_up"].as_f64().unwrap() > 1.0)
    );
    let page = std::fs::read_to_string(at("skips").join("report.html")).unwrap();
    assert!(page.contains("What is computed") && page.contains("transformer_blocks.7"));
    let schedule = json(&std::fs::read_to_string(at("skips").join("reuse.json")).unwrap());
    assert_eq!((&schedule["kind"], &schedule["steps"]), (&"block".into(), &6.into()));
    assert_eq!(schedule["sampler"], "dpm-solver");

    // Plain rules alone.
    let options = ["--keep", "0.5", "--iterations", "0", "--quiet", "--json"];
    let plain = json(&succeed(&mut skip("emoji-dit", &at("plain"), &options)))["skipping"].clone();
    assert!(plain["history"].as_array().unwrap().is_empty());
    let ways = plain["ways"].as_array().unwrap();
    assert!(
        !ways.is_empty()
            && ways.iter().all(|way| !way["name"].as_str().unwrap().starts_with("learned"))
    );

    // It is sampled as it was learned, and in no other way unless that is asked for.
    let generate = |name: &str, options: &[&str]| {
        let mut command = secateur();
        command
            .args(["generate", "--samples", "1", "--quiet", "--out"])
            .arg(at(name))
            .arg(at("skips"))
            .args(options);
        command
    };
    succeed(&mut generate("pictures", &[]));
    let error = fail(&mut generate("no", &["--steps", "9"]), 2);
    assert!(error.contains("with 6 steps") && error.contains("--adapt"), "{error}");
    fail(&mut generate("no", &["--sampler", "ddim"]), 2);
    succeed(&mut generate("adapted", &["--steps", "9", "--adapt"]));
    let bench =
        ["bench", "--repeats", "2", "--steps", "6", "--sampler", "dpm-solver", "--json", "--quiet"];
    let bench = json(&succeed(secateur().args(bench).arg(model("emoji-dit")).arg(at("skips"))));
    assert!(bench["models"][1]["gain"]["macs_speed_up"].as_f64().unwrap() > 1.9);

    // Smaller as well: the schedule stays, and the report is of both.
    let prune = "--structured --allocation uniform --samples 2 --report-samples 2 --quiet --json";
    let report = succeed(
        secateur()
            .arg("prune")
            .arg(at("skips"))
            .args(prune.split(' '))
            .arg("--out")
            .arg(at("both")),
    );
    let models = json(&report)["models"].clone();
    assert!(models[1]["macs"].as_u64().unwrap() < models[0]["macs"].as_u64().unwrap());
    assert!(at("both").join("reuse.json").is_file());
}

/// What is not done takes no memory: nothing is learned without iterations, and nothing is drawn
/// for a report of no pictures.
#[test]
fn the_memory_is_of_the_stages_that_come() {
    let temporary = tempfile::tempdir().unwrap();
    let stages = |iterations: &str, pictures: &str| {
        let options = ["--iterations", iterations, "--report-samples", pictures];
        let mut dry = skip("emoji-dit", &temporary.path().join("no"), &options);
        let memory = &json(&succeed(dry.args(["--dry-run", "--quiet", "--json"])))["memory"];
        let stages = memory["stages"].as_array().unwrap();
        let bytes = |stage: &Value| stage["bytes"].as_u64().unwrap();
        assert_eq!(memory["total"].as_u64(), stages.iter().map(bytes).max());
        stages.iter().map(|stage| stage["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(stages("4", "2"), ["encode", "plain", "learn", "evaluate"]);
    assert_eq!(stages("4", "0"), ["encode", "plain", "learn"]);
    assert_eq!(stages("0", "0"), ["encode", "plain"]);
    assert_eq!(stages("0", "1"), ["encode", "plain", "evaluate"]);
}

#[test]
fn what_cannot_be_met_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let refused = |model_name: &str, options: &[&str]| {
        let error = fail(&mut skip(model_name, &temporary.path().join("no"), options), 2);
        assert!(entries(temporary.path()).is_empty());
        error
    };
    let error = refused("emoji-unet", &["--keep", "0.05"]);
    assert!(error.contains("5.0 % of the multiply-accumulates cannot be kept"), "{error}");
    let least = error.split("--keep ").last().unwrap().split(' ').next().unwrap();
    let options = ["--keep", least, "--dry-run"];
    succeed(&mut skip("emoji-unet", &temporary.path().join("no"), &options));
    assert!(
        refused("emoji-unet", &["--units", "residual"]).contains("no units of the kind residual")
    );
    assert!(refused("emoji-unet", &["--keep", "1.5"]).contains("not in (0, 1)"));
    assert!(refused("emoji-unet", &["--speedup", "0.5"]).contains("not more than 1"));
}

/// Ctrl-C writes what was learned, and --resume ends as if nothing had been.
#[test]
#[cfg(target_os = "linux")]
fn a_stopped_run_goes_on() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let options = ["--iterations", "14", "--report-samples", "0"];
    let run = |name: &str, more: &[&str]| skip("emoji-dit", &at(name), &[&options, more].concat());
    succeed(&mut run("whole", &[]));
    let mut child = run("stopped", &[]).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(told.any(|line| line.starts_with("plain rules") && line.contains("schedules in")));
    std::thread::sleep(Duration::from_secs(1));
    assert!(child.try_wait().unwrap().is_none(), "it ended before it could be stopped");
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let told: Vec<String> = told.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let note = json(&std::fs::read_to_string(at("stopped").join("report.json")).unwrap())["notes"]
        .to_string();
    assert!(
        note.contains("stopped after") && note.contains("`resume` goes on"),
        "{note}, {told:?}"
    );
    for other in [["--seed", "3"], ["--batch", "2"], ["--iterations", "0"]] {
        let error = fail(&mut run("stopped", &["--resume", other[0], other[1]]), 1);
        assert!(error.contains("of another run"), "{error}");
    }
    succeed(&mut run("stopped", &["--resume"]));
    let read = |name: &str, file: &str| std::fs::read_to_string(at(name).join(file)).unwrap();
    assert_eq!(read("whole", "reuse.json"), read("stopped", "reuse.json"));
    let history = |name: &str| json(&read(name, "report.json"))["skipping"]["history"].clone();
    assert_eq!(history("whole"), history("stopped"));
    assert_eq!(entries(temporary.path()), ["stopped", "whole"]);

    // What another command left is not gone on with, and stays.
    let foreign = at(".other.secateur");
    let pruned = |more: &[&str]| {
        let mut command = secateur();
        command.arg("prune").arg(model("emoji-dit")).arg("--out").arg(at("other"));
        command
            .args(["--samples", "2", "--steps", "2", "--packages", "2", "--report-samples", "0"])
            .args(more);
        command
    };
    let mut child = pruned(&[]).stderr(Stdio::null()).spawn().unwrap();
    while !foreign.join("progress/package-0000.json").exists() {
        std::thread::sleep(Duration::from_millis(5));
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let error = fail(&mut run("other", &["--resume"]), 1);
    assert!(error.contains("of another command"), "{error}");
    succeed(&mut pruned(&["--resume"]));
    assert_eq!(entries(temporary.path()), ["other", "stopped", "whole"]);
}
