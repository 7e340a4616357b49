//! Bad input: a clear error that names the file or the layer, a non-zero exit, nothing written, the
//! input untouched.

#![cfg(unix)]

mod common;

use common::{entries, fail, model, secateur, text};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The bundled model in a new folder: links, but for `changed` and the lists of prompts, which are
/// copied.
fn copy(folder: &Path, changed: &str) -> PathBuf {
    let target = folder.join("model");
    std::fs::create_dir(&target).unwrap();
    for name in entries(&model("emoji-mmdit")) {
        let (source, link) = (model("emoji-mmdit").join(&name), target.join(&name));
        if ![changed.split('/').next().unwrap(), "prompts"].contains(&name.as_str()) {
            symlink(source, link).unwrap();
        } else if source.is_dir() {
            std::fs::create_dir(&link).unwrap();
            for file in entries(&source) {
                std::fs::copy(source.join(&file), link.join(&file)).unwrap();
            }
        } else {
            std::fs::copy(source, link).unwrap();
        }
    }
    target
}

fn prune(model: &Path, out: &Path) -> Command {
    let mut command = secateur();
    command.arg("prune").arg(model).arg("--out").arg(out);
    command.args(["--samples", "2", "--steps", "2", "--report-samples", "0", "--quiet"]);
    command
}

/// Prunes a copy of the model in which `change` has been at `file`; the error must hold all of
/// `words`.
fn refused(file: &str, change: impl FnOnce(&Path), words: &[&str]) {
    let temporary = tempfile::tempdir().unwrap();
    let model = copy(temporary.path(), file);
    change(&model.join(file));
    let out = temporary.path().join("out");
    let error = fail(&mut prune(&model, &out), 1);
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    assert_eq!(entries(temporary.path()), ["model"], "something was written");
}

const WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";

fn edit_json(path: &Path, key: &str, value: serde_json::Value) {
    let mut json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_folder_that_is_no_model() {
    let temporary = tempfile::tempdir().unwrap();
    let error = fail(&mut prune(temporary.path(), &temporary.path().join("out")), 1);
    assert!(error.contains("no model_index.json"), "{error}");
    let error = fail(secateur().args(["inspect"]).current_dir(temporary.path()), 2);
    assert!(error.contains("no MODEL given") && error.contains("models/emoji-mmdit"), "{error}");
}

/// Each line is a command line, and what is said of it.
#[test]
fn what_was_meant_is_told() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name);
    let snapshot = at("models--a--b/snapshots/0123");
    std::fs::create_dir_all(snapshot.parent().unwrap()).unwrap();
    symlink(model("emoji-mmdit"), &snapshot).unwrap();
    let (cache, parent) = (at("models--a--b").display().to_string(), at("nothing"));
    std::fs::create_dir(&parent).unwrap();
    let out = at("out").display().to_string();
    let long = at("long.txt");
    std::fs::write(&long, "a cat\n".to_owned() + &"red apple ".repeat(30)).unwrap();
    let (long, parent) = (long.display().to_string(), parent.display().to_string());
    let ten =
        ["generate", "models/emoji-mmdit", "--prompt", "a", "--steps", "1", "--quiet", "--out"];
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["inspect", "models/emoji-mmdi"],
            2,
            "models/emoji-mmdi: no such folder: models/emoji-mmdit is there",
        ),
        (&["inspect", "models/quite-another"], 2, "models/quite-another: no such folder"),
        (&["inspect", "models/emoji-mmdit/transformer"], 1, "not a model folder itself: give "),
        (&["inspect", &cache], 1, "snapshots/0123"),
        (&["inspect", &parent], 1, "no model_index.json"),
        (&["prune", "--structured", "heads", "--dry-run"], 2, "write --structured=heads"),
        (&["prune", "models/emoji-mmdit", "--sparsity", "50", "--dry-run"], 2, "0.5"),
        (
            &["prune", "models/emoji-mmdit", "--sparsity", "0", "--dry-run"],
            2,
            "--sparsity 0 removes nothing",
        ),
        (
            &["compare", "models/emoji-mmdit", "models/emoji-dit"],
            2,
            "cannot be compared: one takes texts, the other labels",
        ),
        (
            &["prune", "models/emoji-mmdit", "--dry-run", "--out", "models/emoji-mmdit/x"],
            1,
            "overlap",
        ),
        (
            &["prune", "models/emoji-mmdit", "--dry-run", "--statistics", &parent],
            1,
            "statistics.json",
        ),
    ];
    for (words, code, said) in cases {
        let error = fail(secateur().args(*words), *code);
        assert!(
            error.contains(said) && error.matches("os error").count() < 2,
            "{words:?}: {error}"
        );
    }
    // Outputs in folders that have to be made.
    let new = at("new");
    std::fs::create_dir(&new).unwrap();
    let mut relative = secateur();
    relative
        .args(["prune"])
        .arg(model("emoji-mmdit"))
        .args("--dry-run --out pruned/nothing --quiet".split(' '));
    common::succeed(relative.current_dir(temporary.path()));
    assert!(entries(&new).is_empty());
    // What is only warned of.
    let warned: &[(&[&str], &str)] = &[
        (&["--threads", "999"], "warning: "),
        (&["--samples", "3"], "warning: --samples 3, and there are 1 prompts"),
        (&["--guidance", "-3"], ""),
        (&["--prompts", &long], "of prompt 2 \"red apple red apple"),
    ];
    for (more, said) in warned {
        let mut command = secateur();
        let words =
            ten.iter().filter(|word| !(more[0] == "--prompts" && ["--prompt", "a"].contains(word)));
        let ended = command.args(words).arg(&out).args(*more).arg("--force").output().unwrap();
        let told = text(&ended.stderr);
        assert!(ended.status.success() && told.contains(said), "{more:?}: {told}");
    }
}

/// What keeps a run from its start, a dry run says too, and with the same words.
#[test]
fn a_dry_run_that_succeeds_will_start() {
    let temporary = tempfile::tempdir().unwrap();
    let at = |name: &str| temporary.path().join(name).display().to_string();
    let lacking = copy(temporary.path(), "text_encoder");
    std::fs::remove_file(lacking.join("text_encoder/model.safetensors")).unwrap();
    let some = "--steps 1 --samples 1 --report-samples 0 --include transformer_blocks.0.attn.to_q";
    let mut saved = prune(&model("emoji-mmdit"), &temporary.path().join("saved"));
    common::succeed(saved.args(some.split(' ')).args(["--save-statistics", &at("statistics")]));
    std::fs::write(at("recipe.toml"), "[[method]]\nname = \"prune\"\n").unwrap();
    let lacking = lacking.display().to_string();
    let (mmdit, unet) =
        (model("emoji-mmdit").display().to_string(), model("emoji-unet").display().to_string());
    let large = [
        "--samples",
        "64",
        "--batch",
        "64",
        "--height",
        "4096",
        "--width",
        "4096",
        "--report-samples",
        "0",
    ];
    let statistics = at("statistics");
    let steps = [
        "--statistics",
        statistics.as_str(),
        "--steps",
        "1",
        "--samples",
        "1",
        "--report-samples",
        "0",
    ];
    let cases: &[(&str, &str, &[&str], &str)] = &[
        ("prune", &lacking, &[], "text_encoder: no weights"),
        ("slim", &lacking, &[], "text_encoder: no weights"),
        ("skip", &lacking, &[], "text_encoder: no weights"),
        ("skip", &unet, &large, "of activations, and this machine has"),
        ("prune", &mmdit, &steps, "no statistics of the input of transformer_blocks."),
        (
            "compress",
            &mmdit,
            &["--recipe", &at("recipe.toml"), "--report-prompts", &at("no.txt")],
            "no.txt",
        ),
        (
            "prune",
            &mmdit,
            &["--save-statistics", &at("a/b"), "--carry-statistics", &at("a")],
            "overlap",
        ),
        (
            "prune",
            &mmdit,
            &["--save-statistics", &at("c/../b")],
            "`..` behind a folder that is not in",
        ),
    ];
    for (command, model, more, said) in cases {
        let job = || {
            let mut job = secateur();
            job.args([command, model, "--quiet", "--out", &at("out")]).args(*more);
            job
        };
        for dry in [&[][..], &["--dry-run"]] {
            let ended = job().args(dry).output().unwrap();
            let error = text(&ended.stderr);
            let code = if *model == unet { 2 } else { 1 };
            assert_eq!(ended.status.code(), Some(code), "{command} {more:?}: {error}");
            assert!(
                error.contains("error: ") && error.contains(said),
                "{command} {more:?}: {error}"
            );
        }
    }
    assert_eq!(entries(temporary.path()), ["model", "recipe.toml", "saved", "statistics"]);
}

#[test]
fn a_missing_component() {
    refused("vae", |path| std::fs::remove_dir_all(path).unwrap(), &["vae", "missing"]);
    refused(
        WEIGHTS,
        |path| std::fs::remove_file(path).unwrap(),
        &["transformer", "no diffusion_pytorch_model"],
    );
}

#[test]
fn an_unknown_class() {
    let class = |path: &Path| edit_json(path, "_class_name", "KandinskyPipeline".into());
    refused("model_index.json", class, &["model_index.json", "KandinskyPipeline", "not supported"]);
    let vae =
        |path: &Path| edit_json(path, "vae", serde_json::json!(["diffusers", "AutoencoderTiny"]));
    refused("model_index.json", vae, &["vae/config.json", "AutoencoderKL", "AutoencoderTiny"]);
    let vae = |path: &Path| edit_json(path, "vae", serde_json::json!(["diffusers", "VQModel"]));
    refused("model_index.json", vae, &["vae is VQModel"]);
    let other = |path: &Path| {
        edit_json(path, "scheduler", serde_json::json!(["diffusers", "LMSDiscreteScheduler"]))
    };
    refused("model_index.json", other, &["LMSDiscreteScheduler is not supported"]);
    let transformer = |path: &Path| {
        edit_json(path, "transformer", serde_json::json!(["diffusers", "HunyuanDiT2DModel"]))
    };
    refused(
        "model_index.json",
        transformer,
        &["HunyuanDiT2DModel", "SD3Transformer2DModel is supported"],
    );
    let scheduler = |path: &Path| edit_json(path, "use_karras_sigmas", true.into());
    refused("scheduler/scheduler_config.json", scheduler, &["use_karras_sigmas is not supported"]);
}

#[test]
fn a_damaged_weight_file() {
    let cut = |path: &Path| {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(1_000_000).unwrap();
    };
    refused(WEIGHTS, cut, &[WEIGHTS, "cut short"]);
    let longer = |path: &Path| {
        std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(&[0; 64]).unwrap();
    };
    refused(WEIGHTS, longer, &[WEIGHTS, "oversized"]);
    let header = |path: &Path| std::fs::write(path, u64::MAX.to_le_bytes()).unwrap();
    refused(WEIGHTS, header, &[WEIGHTS, "not a safetensors file"]);
    refused(WEIGHTS, |path| std::fs::write(path, b"PK\x03\x04 and so on").unwrap(), &["pickle"]);
    refused(WEIGHTS, |path| std::fs::write(path, b"x").unwrap(), &[WEIGHTS, "1 bytes"]);
    refused(
        WEIGHTS,
        |path| std::fs::write(path, b"\x08\0\0\0\0\0\0\0{\"a\":1}}").unwrap(),
        &["bad header"],
    );
}

/// Rewrites the weight file with one tensor changed.
fn change_tensor(
    path: &Path,
    name: &str,
    change: impl FnOnce(&mut Vec<u8>, &mut serde_json::Value),
) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut data = bytes[8 + length..].to_vec();
    let info = &mut header[name];
    let offsets: Vec<usize> = serde_json::from_value(info["data_offsets"].clone()).unwrap();
    let mut part = data[offsets[0]..offsets[1]].to_vec();
    change(&mut part, info);
    data[offsets[0]..offsets[1]].copy_from_slice(&part);
    let header = header.to_string();
    let parts = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    std::fs::write(path, parts).unwrap();
}

#[test]
fn weights_that_do_not_fit() {
    const LAYER: &str = "transformer_blocks.2.attn.to_q.weight";
    let nan = |path: &Path| {
        change_tensor(path, LAYER, |data, _| data[..2].copy_from_slice(&[0x00, 0x7e]))
    };
    refused(WEIGHTS, nan, &[WEIGHTS, LAYER, "NaN"]);
    let dtype = |path: &Path| change_tensor(path, LAYER, |_, info| info["dtype"] = "I16".into());
    refused(WEIGHTS, dtype, &[WEIGHTS, LAYER, "I16"]);
    let shape = |path: &Path| {
        change_tensor(path, LAYER, |_, info| info["shape"] = serde_json::json!([128, 512]))
    };
    refused(WEIGHTS, shape, &["transformer", LAYER, "[128, 512]", "[256, 256]"]);
    let fewer = |path: &Path| edit_json(path, "num_layers", 7.into());
    refused("transformer/config.json", fewer, &["unexpected (transformer_blocks.", "..."]);
    let more = |path: &Path| edit_json(path, "num_layers", 9.into());
    refused("transformer/config.json", more, &["missing (transformer_blocks."]);
    let heads = |path: &Path| edit_json(path, "num_attention_heads", 6.into());
    refused("transformer/config.json", heads, &["caption_projection_dim 256 differs"]);
}

/// What does not stop a look at the model is a warning, in one line.
#[test]
fn what_is_only_warned_of() {
    for (file, key, value, words) in [
        (
            "transformer/config.json",
            "qk_norm",
            serde_json::Value::Null,
            "32 tensors are not read, the first of them transformer_blocks.0.attn.norm",
        ),
        (
            "vae/config.json",
            "act_fn",
            "relu".into(),
            "vae/config.json: act_fn \"relu\" is not supported; \"silu\" is",
        ),
        (
            "text_encoder/config.json",
            "quantization_config",
            serde_json::json!({"bits": 4}),
            "quantization_config",
        ),
        (
            "model_index.json",
            "scheduler",
            serde_json::json!(["diffusers", "FlowMatchLCMScheduler"]),
            "flow-match-euler",
        ),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let model = copy(temporary.path(), file);
        edit_json(&model.join(file), key, value);
        let output = secateur().arg("inspect").arg(&model).output().unwrap();
        let warnings = text(&output.stderr);
        assert!(output.status.success(), "{file}: {warnings}");
        let lines: Vec<&str> =
            warnings.lines().filter(|line| line.starts_with("warning: ")).collect();
        assert!(
            lines.len() == 1 && !lines[0].contains("warning: warning") && lines[0].contains(words),
            "{file}: {warnings}"
        );
    }
}

#[test]
fn an_index_that_points_outside() {
    let index = |path: &Path| {
        let map = serde_json::json!({"weight_map": {"pos_embed.proj.bias":
            "../vae/diffusion_pytorch_model.safetensors"}});
        std::fs::write(path.with_extension("safetensors.index.json"), map.to_string()).unwrap();
    };
    refused(WEIGHTS, index, &["points outside its folder"]);
}

/// An error of the request: nothing is written, and the error holds the words.
#[track_caller]
fn request(options: &[&str], code: i32, words: &[&str]) {
    let temporary = tempfile::tempdir().unwrap();
    let error =
        fail(prune(&model("emoji-mmdit"), &temporary.path().join("out")).args(options), code);
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
    assert!(entries(temporary.path()).is_empty());
}

#[test]
fn sparsities_and_patterns() {
    for sparsity in ["1", "1.5", "NaN"] {
        request(&["--sparsity", sparsity], 2, &["not in [0, 1)"]);
    }
    request(&["--sparsity", "50"], 2, &["not in [0, 1)", "50 % is 0.5"]);
    request(&["--structured", "--sparsity", "30"], 2, &["not in (0, 1)", "30 % is 0.3"]);
    request(&["--sparsity=-0.1"], 2, &["not in [0, 1)"]);
    request(&["--sparsity", "half"], 2, &["half"]);
    request(&["--pattern", "4:4"], 2, &["4:4", "less than M"]);
    request(&["--pattern", "0:4"], 2, &["0:4", "at least 1"]);
    request(&["--pattern", "two:4"], 2, &["N:M"]);
    request(
        &["--pattern", "3:7"],
        1,
        &["layer transformer_blocks.0.attn.to_q", "256 columns", "groups of 7"],
    );
    request(&["--sparsity", "0.5", "--pattern", "2:4"], 2, &["cannot be used with"]);
}

#[test]
fn options_that_leave_nothing_to_do() {
    request(&["--include", "no_such_layer"], 2, &["no layer to prune", "93"]);
    request(&["--include", "[bad"], 2, &["bad glob"]);
    request(&["--memory", "1KiB"], 2, &["at least", "MiB"]);
    request(&["--weighting", "cubic"], 2, &["cubic", "log-decrease"]);
    request(&["--steps", "0"], 2, &["at least 1"]);
    request(&["--guidance", "NaN"], 2, &["guidance NaN"]);
    request(&["--clip", "no/such/clip"], 1, &["no/such/clip"]);
    request(&["--statistics", "no/such/folder"], 1, &["no/such/folder"]);
}

#[test]
fn prompts_that_cannot_be_read() {
    let temporary = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = temporary.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let missing = temporary.path().join("missing.txt").display().to_string();
    request(&["--prompts", &missing], 1, &["missing.txt"]);
    request(
        &["--prompts", &temporary.path().display().to_string()],
        1,
        &[&temporary.path().display().to_string()],
    );
    request(&["--prompts", &file("binary.txt", &[0xff, 0xfe, 0x00])], 1, &["binary.txt"]);
    request(&["--prompts", &file("empty.txt", b"\n  \n")], 1, &["empty.txt", "no prompts"]);
    request(&["--prompts", &file("one.txt", b"a cat\n"), "--samples", "5"], 2, &["--samples 5"]);
    let long = [vec![b'a'; 1 << 17], b"\n".to_vec()].concat();
    request(
        &["--prompts", &file("long.txt", &long)],
        1,
        &["long.txt", "entry 1", "at most 65536 bytes"],
    );
    let good = file("good.txt", b"a cat\n\na dog\n");
    let planned = prune(&model("emoji-mmdit"), &temporary.path().join("out"));
    common::succeed({ planned }.args(["--dry-run", "--samples", "2", "--prompts", &good]));
}

#[test]
fn an_output_that_cannot_be_written() {
    let temporary = tempfile::tempdir().unwrap();
    let existing = temporary.path().join("existing");
    std::fs::create_dir(&existing).unwrap();
    std::fs::write(existing.join("mine.txt"), "mine").unwrap();
    let error = fail(&mut prune(&model("emoji-mmdit"), &existing), 1);
    assert!(error.contains("exists already") && error.contains("--force"), "{error}");
    let error = fail(&mut prune(&model("emoji-mmdit"), &existing.join("mine.txt").join("out")), 1);
    assert!(error.contains("mine.txt"), "{error}");
    assert_eq!(std::fs::read_to_string(existing.join("mine.txt")).unwrap(), "mine");
    for out in [
        model("emoji-mmdit"),
        model("emoji-mmdit").join("pruned"),
        model("emoji-mmdit").parent().unwrap().to_owned(),
    ] {
        let error = fail(prune(&model("emoji-mmdit"), &out).arg("--force"), 1);
        assert!(error.contains("overlap"), "{error}");
    }
    assert!(!model("emoji-mmdit").join("pruned").exists());
    assert_eq!(entries(temporary.path()), ["existing"]);
}

#[test]
fn an_output_that_would_swallow_an_input() {
    let temporary = tempfile::tempdir().unwrap();
    let inputs = temporary.path().join("inputs");
    std::fs::create_dir(&inputs).unwrap();
    std::fs::write(inputs.join("prompts.txt"), "a cat\na dog\n").unwrap();
    let prompts = inputs.join("prompts.txt").display().to_string();
    let error =
        fail(prune(&model("emoji-mmdit"), &inputs).args(["--force", "--prompts", &prompts]), 1);
    assert!(error.contains("overlap"), "{error}");
    let out = temporary.path().join("out");
    for statistics in [&model("emoji-mmdit"), &out] {
        let statistics = statistics.display().to_string();
        let error = fail(
            prune(&model("emoji-mmdit"), &out).args(["--force", "--save-statistics", &statistics]),
            1,
        );
        assert!(error.contains("overlap"), "{error}");
    }
    let existing = inputs.display().to_string();
    let error = fail(prune(&model("emoji-mmdit"), &out).args(["--save-statistics", &existing]), 1);
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(entries(temporary.path()), ["inputs"]);
    assert_eq!(entries(&inputs), ["prompts.txt"]);
}

/// A limit on the size of files stands for a full disk: writing fails in the middle.
#[test]
fn a_disk_that_is_full() {
    let temporary = tempfile::tempdir().unwrap();
    let script = r#"trap '' XFSZ; ulimit -f 8192; exec "$@""#;
    let inner = prune(&model("emoji-mmdit"), &temporary.path().join("out"));
    let mut limited = Command::new("bash");
    limited.args(["-c", script, "limited"]).arg(inner.get_program()).args(inner.get_args());
    limited.current_dir(common::project());
    let error = fail(&mut limited, 1);
    assert!(error.contains(".tensors") && error.contains("File too large"), "{error}");
    assert!(entries(temporary.path()).is_empty());
}

#[test]
fn ctrl_c_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = secateur();
    command.arg("prune").arg("--out").arg(temporary.path().join("out"));
    command.args(["--samples", "50", "--report-samples", "0"]);
    let child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // The temporary folder appears once the work has begun.
    let start = Instant::now();
    while entries(temporary.path()).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(1500));
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("interrupted: no output was written"));
    assert!(entries(temporary.path()).is_empty());
}
