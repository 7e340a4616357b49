//! Runs whose weights do not stay in memory: the same files, within what was asked for.

mod common;

use common::{entries, fail, model, secateur, succeed};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const USUAL: [&str; 7] = [
    "--samples=2",
    "--steps=2",
    "--report-samples=1",
    "--threads=2",
    "--include=transformer_blocks.[03].*",
    "--quiet",
    "--json",
];

fn run(method: &[&str], out: Option<&Path>, memory: Option<u64>) -> Command {
    let mut command = secateur();
    command.arg(method[0]).arg(model("emoji-mmdit")).args(USUAL).args(&method[1..]);
    command.args(memory.map(|bytes| format!("--memory={bytes}B")));
    match out {
        Some(out) => command.arg("--out").arg(out),
        None => command.arg("--dry-run"),
    };
    command
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn said(command: &mut Command) -> u64 {
    json(&succeed(command))["memory"]["total"].as_u64().unwrap()
}

fn weights(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
}

/// What a message says of the weights that stay.
fn stay(notes: &Value) -> bool {
    notes.to_string().contains("of the denoiser's weights stay in memory")
}

#[test]
fn the_same_files_within_less_memory() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    for method in [
        &["prune"][..],
        &["prune", "--method=wanda", "--pattern=2:4"],
        &["prune", "--structured"],
        &["slim", "--budget=0.02", "--allocation=uniform"],
    ] {
        let whole = said(&mut run(method, None, None));
        let most = whole - (30 << 20);
        let planned = json(&succeed(&mut run(method, None, Some(most))));
        assert!(planned["memory"]["total"].as_u64().unwrap() <= most, "{method:?}: {planned}");
        assert_eq!(planned["packages"].as_array().unwrap().len(), 1, "{method:?}");
        assert!(stay(&planned["notes"]), "{method:?}: {planned}");
        succeed(&mut run(method, Some(&at("whole")), None));
        let report = json(&succeed(&mut run(method, Some(&at("less")), Some(most))));
        assert!(stay(&report["notes"]), "{method:?}");
        let before = json(&std::fs::read_to_string(at("whole/report.json")).unwrap());
        assert!(!stay(&before["notes"]), "{method:?}");
        for part in ["/layers", "/groups", "/comparison/prompts"] {
            assert_eq!(before.pointer(part), report.pointer(part), "{method:?}: {part}");
        }
        assert!(weights(&at("whole")) == weights(&at("less")), "{method:?}: other weights");
        assert_eq!(entries(temporary.path()), ["less", "whole"]);
        for name in ["whole", "less"] {
            std::fs::remove_dir_all(at(name)).unwrap();
        }
    }
}

/// Packages that were finished before are read from where they were saved, too.
#[test]
#[cfg(unix)]
fn a_killed_run_goes_on_within_its_memory() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    // Less than one package needs.
    let mut most = said(&mut run(&["prune"], None, None));
    let packages = |most: u64| {
        let planned = json(&succeed(&mut run(&["prune"], None, Some(most))));
        (planned["packages"].as_array().unwrap().len(), stay(&planned["notes"]))
    };
    while packages(most) != (2, true) {
        most -= 2 << 20;
    }
    succeed(&mut run(&["prune"], Some(&at("whole")), Some(most)));
    let mut child =
        run(&["prune"], Some(&at("out")), Some(most)).stdout(Stdio::null()).spawn().unwrap();
    while !at(".out.secateur/progress/package-0000.json").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(run(&["prune"], Some(&at("out")), Some(most)).arg("--resume"));
    assert!(weights(&at("whole")) == weights(&at("out")));
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let error = fail(&mut run(&["prune"], None, Some(64 << 20)), 2);
    assert!(error.contains("--memory 64 MiB does not hold this run: at least"), "{error}");
}
