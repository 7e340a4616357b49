//! The main job end to end, small: two prompts, three steps.

mod common;

use common::{entries, model, project, secateur, succeed};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const SMALL: &str = "--samples 2 --steps 3 --report-samples 3 --quiet --json";

fn prune(out: &Path, options: &[&str]) -> Command {
    let mut command = secateur();
    command.arg("prune").arg("--out").arg(out).args(SMALL.split(' ')).args(options);
    command
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Zeros and weights of the prunable layers, by `inspect`.
fn zeros(folder: &Path) -> Vec<(String, f64)> {
    let inspection = json(&succeed(
        secateur().arg("inspect").arg(folder).args(["--zeros", "--json", "--quiet"]),
    ));
    let layers =
        inspection["layers"].as_array().unwrap().iter().filter(|layer| layer["prunable"] == true);
    let share = |layer: &Value| {
        let columns = layer["shape"][1].as_f64().unwrap() * layer["shape"][0].as_f64().unwrap();
        (layer["name"].as_str().unwrap().to_owned(), layer["zeros"].as_f64().unwrap() / columns)
    };
    layers.map(share).collect()
}

fn same_file(a: &Path, b: &Path) -> bool {
    std::fs::read(a).unwrap() == std::fs::read(b).unwrap()
}

#[test]
fn prune_writes_a_whole_model_and_a_report() {
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("pruned");
    let report = json(&succeed(&mut prune(&out, &["--sparsity", "0.5"])));
    assert_eq!(entries(temporary.path()), ["pruned"], "something was left beside the output");

    assert_eq!(report["layers"].as_array().unwrap().len(), 93);
    let comparison = &report["comparison"];
    assert_eq!(comparison["prompts"].as_array().unwrap().len(), 3);
    assert!(comparison["psnr"]["mean"].as_f64().unwrap() > 5.0);
    assert!(comparison["text_image"]["model"] == "emoji-clip");
    let stages: Vec<_> =
        report["stages"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(stages, ["encode", "load", "evaluate", "calibrate", "solve", "save"]);
    let html = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(html.matches("data:image/png;base64").count() >= 6);
    assert_eq!(json(&std::fs::read_to_string(out.join("report.json")).unwrap()), report);

    for (name, share) in zeros(&out) {
        assert!((0.499..0.51).contains(&share), "{name}: {share} zeros");
    }
    // As a table: a column, and the share of all parameters.
    let table = succeed(secateur().arg("inspect").arg(&out).args(["--zeros", "--quiet"]));
    assert!(table.lines().next().unwrap().trim_end().ends_with("zeros"), "{table}");
    let layer =
        table.lines().find(|line| line.starts_with("transformer_blocks.0.attn.to_q ")).unwrap();
    // Half of the weights; the bias stays.
    assert!(layer.ends_with("49.8 %"), "{layer}");
    assert!(table.contains("parameters in the denoiser, 32.3 % zeros"), "{table}");
    let dense = model("emoji-mmdit");
    for file in ["model_index.json", "secateur.json", "vae/config.json", "tokenizer/merges.txt"] {
        assert!(same_file(&dense.join(file), &out.join(file)), "{file} changed");
    }
    let weights = "transformer/diffusion_pytorch_model.safetensors";
    let size = |folder: &Path| std::fs::metadata(folder.join(weights)).unwrap().len();
    assert_eq!(size(&dense), size(&out));
    let held_out = std::fs::read_to_string(dense.join("prompts/held_out.txt")).unwrap();
    assert_eq!(comparison["prompts"][0]["prompt"], held_out.lines().next().unwrap());

    // What was saved is what the report judged.
    let compared = json(&succeed(
        secateur()
            .args(["compare", "models/emoji-mmdit"])
            .arg(&out)
            .args("--samples 3 --steps 3 --seed 1 --quiet --json".split(' ')),
    ));
    assert_eq!(compared["comparison"]["psnr"], comparison["psnr"]);
    assert_eq!(compared["comparison"]["text_image"], comparison["text_image"]);
}

#[test]
fn patterns_are_kept_row_by_row() {
    let temporary = tempfile::tempdir().unwrap();
    let cases = [
        ("obs", "2:4", 4),
        ("wanda", "4:8", 8),
        ("dsnot", "2:4", 4),
        ("dsnot-hessian", "3:4", 4),
        ("magnitude", "1:4", 4),
    ];
    for (method, pattern, group) in cases {
        let out = temporary.path().join(method);
        succeed(&mut prune(
            &out,
            &["--pattern", pattern, "--method", method, "--report-samples", "0"],
        ));
        let pruned: usize = pattern.split(':').next().unwrap().parse().unwrap();
        let file = out.join("transformer/diffusion_pytorch_model.safetensors");
        let tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
        let weight = &tensors["transformer_blocks.3.ff.net.2.weight"];
        let weight = weight.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap();
        for group in weight.to_vec1::<f32>().unwrap().chunks(group) {
            assert!(
                group.iter().filter(|w| **w == 0.0).count() >= pruned,
                "{method} {pattern}: {group:?}"
            );
        }
    }
}

#[test]
fn saved_statistics_give_the_same_model() {
    let temporary = tempfile::tempdir().unwrap();
    let (first, second) = (temporary.path().join("first"), temporary.path().join("second"));
    let statistics = temporary.path().join("statistics").display().to_string();
    let options = ["--pattern", "2:4", "--report-samples", "0"];
    succeed(prune(&first, &options).args(["--save-statistics", &statistics]));
    let report = json(&succeed(prune(&second, &options).args(["--statistics", &statistics])));
    let weights = "transformer/diffusion_pytorch_model.safetensors";
    assert!(same_file(&first.join(weights), &second.join(weights)));
    assert!(report["stages"].as_array().unwrap().iter().all(|stage| stage["name"] != "calibrate"));

    let other = temporary.path().join("other");
    let error = common::fail(&mut prune(&other, &["--statistics", &statistics, "--seed", "5"]), 1);
    assert!(error.contains("seed 0, now 5"), "{error}");
    assert!(!other.exists());
}

#[test]
fn packages_see_the_model_as_pruned_so_far() {
    let temporary = tempfile::tempdir().unwrap();
    let errors = |name: &str, packages: &str| {
        let options = [
            "--packages",
            packages,
            "--report-samples",
            "0",
            "--include",
            "transformer_blocks.[01].*",
        ];
        let report = json(&succeed(&mut prune(&temporary.path().join(name), &options)));
        report["layers"].as_array().unwrap().clone()
    };
    let (one, many) = (errors("one", "1"), errors("many", "8"));
    assert_eq!(one.len(), many.len());
    assert_eq!(many.last().unwrap()["package"], 7);
    assert_eq!(
        one[0]["error"], many[0]["error"],
        "the first package sees the dense model either way"
    );
    assert_ne!(one.last().unwrap()["error"], many.last().unwrap()["error"]);
}

#[test]
fn threads_do_not_matter() {
    let temporary = tempfile::tempdir().unwrap();
    let run = |name: &str, options: &[&str]| {
        let out = temporary.path().join(name);
        succeed(
            prune(&out, &["--report-samples", "0", "--include", "transformer_blocks.0.*"])
                .args(options),
        );
        std::fs::read(out.join("transformer/diffusion_pytorch_model.safetensors")).unwrap()
    };
    let two = run("two", &["--threads", "2"]);
    assert!(two == run("one", &["--threads", "1"]), "threads change the result");
}

#[test]
fn generate_numbers_the_pictures_and_repeats_itself() {
    let temporary = tempfile::tempdir().unwrap();
    let run = |name: &str, batch: &str| {
        let out = temporary.path().join(name);
        let prompts =
            ["--prompt", "red apple, noto style emoji", "--prompt", "a cat", "--prompt", "tree"];
        let options = ["--steps", "2", "--seed", "3", "--quiet", "--json", "--batch", batch];
        let json = json(&succeed(
            secateur().arg("generate").args(prompts).args(options).arg("--out").arg(&out),
        ));
        assert_eq!(json["images"][1]["prompt"], "a cat");
        out
    };
    let (whole, single) = (run("whole", "3"), run("single", "1"));
    assert_eq!(entries(&whole), ["0000.png", "0001.png", "0002.png"]);
    for name in entries(&whole) {
        let read = |folder: &Path| image::open(folder.join(&name)).unwrap().to_rgb8();
        assert_eq!(read(&whole).dimensions(), (64, 64));
        let (a, b) = (read(&whole), read(&single));
        let furthest = a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(furthest <= 1, "{name} depends on the batch by {furthest}");
    }
}

#[test]
fn the_dry_run_writes_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("out");
    let text = succeed(prune(&out, &["--dry-run"]).env("NO_COLOR", "1"));
    assert_eq!(json(&text)["layers"], 93);
    assert!(entries(temporary.path()).is_empty());
    let mut plain = secateur();
    let options = ["--threads", "2", "--packages", "4", "--pattern", "2:4"];
    let text = succeed(plain.args(["prune", "--dry-run"]).args(options));
    // How long it takes is this machine's.
    let (time, rest): (Vec<_>, Vec<_>) =
        text.lines().partition(|line| line.starts_with("time: about "));
    assert_eq!(time.len(), 1);
    insta::assert_snapshot!(rest.join("\n"));
}

/// What is printed for people has the report's errors: of layers whose weights are pruned, of
/// products and attentions that get smaller.
#[test]
fn the_errors_of_a_report_are_printed() {
    let temporary = tempfile::tempdir().unwrap();
    let check = |command: &str, figures: &[(&str, &str, &str)]| {
        let out = temporary.path().join(command);
        let mut run = secateur();
        run.args([command, "models/emoji-dit", "--samples", "2", "--steps", "2", "--quiet"]);
        let printed = succeed(run.args(["--report-samples", "0", "--out"]).arg(&out));
        let report = json(&std::fs::read_to_string(out.join("report.json")).unwrap());
        for (title, list, figure) in figures {
            let all = report[list].as_array().unwrap().iter();
            let all: Vec<f64> = all.filter_map(|part| part[figure].as_f64()).collect();
            let mean = format!("{:.4}", all.iter().sum::<f64>() / all.len() as f64);
            let largest = format!("{:.4}", all.iter().copied().fold(0.0, f64::max));
            let line = printed.lines().find(|line| line.trim_start().starts_with(title));
            let has = |figure: &String| line.is_some_and(|line| line.contains(figure));
            assert!(has(&mean) && has(&largest), "{title}, {mean}, {largest}: {printed}");
        }
        assert_eq!(printed.matches(" largest").count(), figures.len(), "{printed}");
    };
    check("prune", &[("layer error", "layers", "error")]);
    let of_groups =
        [("product error", "groups", "error"), ("attentions'", "groups", "module_error")];
    check("slim", &of_groups);
}

#[test]
fn inspect_counts_parameters_and_multiplications() {
    let text = succeed(secateur().args(["inspect", "--quiet"]));
    insta::assert_snapshot!(text);
    assert!(project().join("models/emoji-mmdit").exists());
}

#[test]
fn help() {
    insta::assert_snapshot!(succeed(secateur().arg("--help")));
    insta::assert_snapshot!(succeed(secateur().args(["prune", "--help"])));
}
