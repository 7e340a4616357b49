//! Numbers beyond any model, in every file and on the command line: refused at once, within little
//! memory, by name.

#![cfg(unix)]

mod common;
#[path = "common/pipeline.rs"]
mod pipeline;

use common::{entries, fail, model, project, secateur, succeed, text};
use pipeline::{copy_fixture, copy_pipeline};
use serde_json::{Value, json};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A pipeline of fixtures in a folder of its own.
fn pipeline(name: &str) -> (tempfile::TempDir, PathBuf) {
    let temporary = tempfile::tempdir().unwrap();
    let model = temporary.path().join("model");
    copy_pipeline(name, &model);
    (temporary, model)
}

/// The binary with no more than 1.5 GB of addresses.
fn limited(arguments: &[&str]) -> Command {
    let binary = secateur();
    let mut command = Command::new("bash");
    command
        .args(["-c", "ulimit -v 1500000; exec \"$@\"", "bash"])
        .arg(binary.get_program())
        .args(arguments);
    command.args(["--quiet", "--threads=2"]).arg0("bash").current_dir(project());
    command
}

/// Runs to failure within seconds, by an error that holds all of `words`.
fn refused(arguments: &[&str], words: &[&str]) {
    let start = Instant::now();
    let output = limited(arguments).output().unwrap();
    let (seconds, error) = (start.elapsed(), text(&output.stderr));
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{arguments:?}: {:?} {error}",
        output.status
    );
    // A second, and what a busy machine may take more.
    assert!(seconds < Duration::from_secs(5), "{arguments:?} took {seconds:?}");
    for word in words {
        assert!(error.contains(word), "{arguments:?}: {word:?} is not in {error:?}");
    }
}

/// Replaces a field, which dots and numbers lead to, by `value` as JSON.
fn set(path: &Path, field: &str, value: &str) {
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut place = &mut json;
    for part in field.split('.') {
        place = match part.parse::<usize>() {
            Ok(index) => &mut place[index],
            Err(_) => &mut place[part],
        };
    }
    *place = json!("(here)");
    std::fs::write(path, json.to_string().replace("\"(here)\"", value)).unwrap();
}

const HUGE: [&str; 4] = ["2147483648", "9223372036854775807", "18446744073709551615", "1e30"];

/// Draws with a pipeline that has one huge field.
fn fields_are_refused(name: &str, fields: &[(&str, &[&str])]) {
    let (temporary, model) = pipeline(name);
    let out = temporary.path().join("out").display().to_string();
    let folder = model.display().to_string();
    for (file, fields) in fields {
        let path = model.join(file);
        let before = std::fs::read(&path).unwrap();
        for field in *fields {
            for value in HUGE {
                set(&path, field, value);
                let last = field.rsplit('.').find(|part| part.parse::<usize>().is_err()).unwrap();
                let arguments =
                    ["generate", &folder, "--out", &out, "--prompt", "cat", "--steps", "1"];
                refused(&arguments, &[file, last]);
                assert_eq!(entries(temporary.path()), ["model"], "something was written");
                std::fs::write(&path, &before).unwrap();
            }
        }
    }
}

#[test]
fn of_stable_diffusion() {
    let clip = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    ];
    let vae = [
        "out_channels",
        "latent_channels",
        "layers_per_block",
        "norm_num_groups",
        "block_out_channels.0",
    ];
    let unet = [
        "in_channels",
        "sample_size",
        "layers_per_block",
        "transformer_layers_per_block",
        "cross_attention_dim",
    ];
    fields_are_refused(
        "stable_diffusion_xl",
        &[
            ("text_encoder/config.json", &clip),
            ("text_encoder_2/config.json", &["max_position_embeddings", "projection_dim"]),
            ("vae/config.json", &vae),
            ("unet/config.json", &unet),
            (
                "scheduler/scheduler_config.json",
                &["num_train_timesteps", "beta_end", "steps_offset"],
            ),
        ],
    );
}

#[test]
fn of_pixart() {
    let t5 = [
        "num_layers",
        "d_model",
        "d_kv",
        "d_ff",
        "num_heads",
        "vocab_size",
        "relative_attention_num_buckets",
    ];
    fields_are_refused(
        "pixart",
        &[
            ("text_encoder/config.json", &t5),
            (
                "transformer/config.json",
                &["num_layers", "attention_head_dim", "patch_size", "caption_channels"],
            ),
            (
                "secateur.json",
                &["generation.steps", "generation.max_sequence_length", "generation.guidance"],
            ),
        ],
    );
}

#[test]
fn of_a_tiny_autoencoder() {
    let (temporary, model) = pipeline("stable_diffusion_xl");
    std::fs::remove_dir_all(model.join("vae")).unwrap();
    copy_fixture(&project().join("tests/goldens/tiny_vae"), &model.join("vae"));
    set(&model.join("model_index.json"), "vae.1", "\"AutoencoderTiny\"");
    let path = model.join("vae/config.json");
    let before = std::fs::read(&path).unwrap();
    let (folder, out) =
        (model.display().to_string(), temporary.path().join("out").display().to_string());
    for field in [
        "num_decoder_blocks.0",
        "num_encoder_blocks.1",
        "out_channels",
        "upsampling_scaling_factor",
    ] {
        for value in HUGE {
            set(&path, field, value);
            refused(
                &["generate", &folder, "--out", &out, "--prompt", "cat"],
                &["vae/config.json", "beyond"],
            );
            std::fs::write(&path, &before).unwrap();
        }
    }
}

#[test]
fn a_limit_that_transformers_writes_for_none_is_none() {
    let (temporary, model) = pipeline("pixart");
    let path = model.join("tokenizer/tokenizer_config.json");
    set(&path, "model_max_length", "1000000000000000019884624838656");
    let mut command = secateur();
    command
        .args(["generate", "--prompt", "cat", "--steps", "1", "--quiet", "--out"])
        .arg(temporary.path().join("out"));
    succeed(command.arg(&model));
}

#[test]
fn of_the_command_line() {
    let huge = "1000000000000000000";
    for option in ["--steps", "--height", "--width", "--batch", "--samples"] {
        refused(
            &["generate", "models/emoji-unet", "--out", "no", option, huge],
            &[option, "at most 1000000"],
        );
    }
    for option in ["--token-stride", "--packages", "--multiple", "--keep-ends", "--report-samples"]
    {
        refused(
            &["prune", "models/emoji-unet", "--out", "no", option, huge],
            &[option, "at most 1000000"],
        );
    }
    for option in ["--iterations", "--exchanges"] {
        refused(
            &["skip", "models/emoji-unet", "--out", "no", option, huge],
            &[option, "at most 1000000"],
        );
    }
    refused(&["bench", "models/emoji-unet", "--repeats", huge], &["--repeats", "at most 1000000"]);
    refused(
        &["bench", "models/emoji-unet", "--batch", "1000000"],
        &["1000000 image(s)", "--batch"],
    );
    refused(
        &["generate", "models/emoji-unet", "--out", "no", "--height", "1000000"],
        &["height of 1000000 pixels"],
    );
    refused(
        &["generate", "models/emoji-unet", "--out", "no", "--guidance", "1e308"],
        &["guidance"],
    );
    let error = fail(
        secateur().arg("inspect").arg(model("emoji-unet")).args(["--memory", "--batch", huge]),
        2,
    );
    assert!(error.contains("--batch") && error.contains("at most 1000000"), "{error}");
    let (_temporary, folder) = pipeline("ddpm");
    let folder = folder.display().to_string();
    refused(
        &["generate", &folder, "--out", "no", "--samples", huge],
        &["--samples", "at most 1000000"],
    );
}

/// A file of that header, followed by `bytes` bytes.
fn safetensors(path: &Path, header: &str, bytes: usize) {
    let parts = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; bytes]].concat();
    std::fs::write(path, parts).unwrap();
}

#[test]
fn tensors_that_stand_there_twice() {
    let (_temporary, model) = pipeline("stable_diffusion_xl");
    let unet = model.join("unet");
    let weights = unet.join("diffusion_pytorch_model.safetensors");
    let folder = model.display().to_string();
    let info = r#"{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#;
    for (header, words) in [
        (format!(r#"{{"a": {info}, "a": {info}}}"#), ["a stands there twice"; 2]),
        (
            r#"{"__metadata__": {"b": "1", "b": "2"}}"#.to_owned(),
            ["b stands there twice", "__metadata__"],
        ),
        (info.replace("[1]", "[0, 18446744073709551615, 4]"), ["", ""]),
        (
            format!(r#"{{"a": {}}}"#, info.replace("[1]", "[0, 9223372036854775807, 4]")),
            ["the shape of a", ""],
        ),
        (
            format!(r#"{{"a": {}}}"#, info.replace("[1]", "[4294967296, 4294967296]")),
            ["the shape of a", ""],
        ),
    ] {
        safetensors(&weights, &header, 4);
        refused(
            &["inspect", &folder],
            &[&["diffusion_pytorch_model.safetensors", "bad header"], &words[..]].concat(),
        );
    }
    std::fs::remove_file(&weights).unwrap();
    let shards = ["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"];
    for shard in shards {
        safetensors(
            &unet.join(shard),
            &format!(r#"{{"a": {info}, "{shard}": {}}}"#, info.replace("[0, 4]", "[4, 8]")),
            8,
        );
    }
    let map = json!({"weight_map": {"a": shards[0], (shards[1]): shards[1]}});
    let index = unet.join("diffusion_pytorch_model.safetensors.index.json");
    std::fs::write(&index, map.to_string()).unwrap();
    refused(&["inspect", &folder], &["holds a", shards[0], shards[1]]);
    let twice = format!(r#"{{"weight_map": {{"a": "{0}", "a": "{0}"}}}}"#, shards[0]);
    std::fs::write(&index, twice).unwrap();
    refused(&["inspect", &folder], &["index.json", "a stands there twice"]);
}
