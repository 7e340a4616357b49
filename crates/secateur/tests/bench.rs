//! `bench` on the bundled models.

mod common;

use candle_core::{Device, safetensors};
use common::{entries, fail, model, secateur, succeed};
use serde_json::Value;
use std::path::Path;

fn bench(models: &[&Path], options: &[&str]) -> String {
    succeed(secateur().args(["bench", "--repeats", "2", "--quiet"]).args(options).args(models))
}

fn inspect(model: &Path) -> Value {
    serde_json::from_str(&succeed(secateur().args(["inspect", "--json", "--quiet"]).arg(model)))
        .unwrap()
}

/// emoji-dit without the second half of its blocks.
fn half_of_emoji_dit(folder: &Path) {
    let source = model("emoji-dit");
    for component in ["scheduler", "vae", "transformer"] {
        std::fs::create_dir_all(folder.join(component)).unwrap();
        for file in entries(&source.join(component)) {
            std::fs::copy(source.join(component).join(&file), folder.join(component).join(&file))
                .unwrap();
        }
    }
    std::fs::copy(source.join("model_index.json"), folder.join("model_index.json")).unwrap();
    std::fs::copy(source.join("secateur.json"), folder.join("secateur.json")).unwrap();
    let config = folder.join("transformer/config.json");
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    let kept = json["num_layers"].as_u64().unwrap() / 2;
    json["num_layers"] = kept.into();
    std::fs::write(&config, json.to_string()).unwrap();
    let weights = folder.join("transformer/diffusion_pytorch_model.safetensors");
    let mut tensors = safetensors::load(&weights, &Device::Cpu).unwrap();
    tensors.retain(|name, _| {
        let block =
            name.strip_prefix("transformer_blocks.").and_then(|rest| rest.split('.').next());
        block.is_none_or(|block| block.parse::<u64>().unwrap() < kept)
    });
    safetensors::save(&tensors, &weights).unwrap();
}

#[test]
fn a_model_is_as_fast_as_itself() {
    let model = model("emoji-mmdit");
    let told: Value =
        serde_json::from_str(&bench(&[&model, &model], &["--steps", "2", "--json"])).unwrap();
    let inspection = inspect(&model);
    let number = |value: &Value| value.as_f64().unwrap();
    for row in told["models"].as_array().unwrap() {
        assert_eq!(row["parameters"], inspection["parameters"]);
        assert_eq!(row["macs"], inspection["macs"]);
        assert!(number(&row["computed_macs"]) < number(&row["macs"]), "equal text tokens count");
        for seconds in ["encode_seconds", "step_seconds", "decode_seconds", "image_seconds"] {
            let spread = &row[seconds];
            assert!(number(&spread["lower_quartile"]) > 0.0, "{seconds}");
            assert!(number(&spread["lower_quartile"]) <= number(&spread["median"]), "{seconds}");
            assert!(number(&spread["median"]) <= number(&spread["upper_quartile"]), "{seconds}");
        }
        // Weights, and once more as products read them.
        if cfg!(target_os = "linux") {
            assert!(number(&row["peak_bytes"]) > 8.0 * number(&row["parameters"]));
        }
    }
    assert!(told["models"][0]["gain"].is_null());
    let gain = &told["models"][1]["gain"];
    let ratio = number(&gain["step_speed_up"]["median"]);
    assert!((0.4..2.5).contains(&ratio), "{ratio} times as fast as itself");
    assert_eq!(gain["macs_speed_up"], 1.0);
    assert!(gain["time_saved_over_macs_saved"].is_null());
}

#[test]
fn half_of_the_blocks_are_faster() {
    let temporary = tempfile::tempdir().unwrap();
    let (whole, half) = (model("emoji-dit"), temporary.path().join("half"));
    half_of_emoji_dit(&half);
    let options = ["--steps", "5", "--batch", "2", "--json"];
    let told: Value = serde_json::from_str(&bench(&[&whole, &half], &options)).unwrap();
    let macs = |model: &Path| inspect(model)["macs"].as_f64().unwrap();
    let gain = &told["models"][1]["gain"];
    let number = |value: &Value| value.as_f64().unwrap();
    assert!((number(&gain["macs_speed_up"]) - macs(&whole) / macs(&half)).abs() < 1e-12);
    assert!(number(&gain["macs_speed_up"]) > 1.5);
    assert!(number(&gain["step_speed_up"]["median"]) > 1.0);
    assert!(number(&gain["time_saved_over_macs_saved"]) > 0.0);
    assert_eq!(told["models"][1]["name"], "half");
    assert_eq!(told["batch"], 2);
}

#[test]
fn the_table_has_a_row_a_figure() {
    let (unet, steps) = (model("emoji-unet"), ["--steps", "2"]);
    let labels = |table: &str| {
        let figures = table.split("\n\n").next().unwrap().lines();
        figures.map(|line| line.split("  ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let (alone, two) = (bench(&[&unet], &steps), bench(&[&unet, &unet], &steps));
    insta::assert_snapshot!(labels(&two)[1..].join("\n"));
    assert_eq!(labels(&alone)[1..], labels(&two)[1..labels(&alone).len()]);
    assert!(
        alone.starts_with("  ") && alone.lines().next().unwrap().ends_with("  emoji-unet"),
        "{alone}"
    );
    assert!(!alone.contains("speed-up"), "{alone}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let bench = |other: &Path, options: &[&str]| {
        let mut bench = secateur();
        bench.args(["bench", "models/emoji-mmdit"]).arg(other).args(options);
        bench
    };
    let error = fail(&mut bench(Path::new("models/emoji-unet"), &[]), 2);
    for words in [
        "models/emoji-unet",
        "pipeline class StableDiffusionPipeline, not StableDiffusion3Pipeline",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let missing = temporary.path().join("missing");
    let error = fail(&mut bench(&missing, &[]), 2);
    assert!(error.contains("missing") && error.contains("no such folder"), "{error}");
    let error = fail(&mut bench(Path::new("models/emoji-mmdit"), &["--variant", "fp8"]), 1);
    assert!(error.contains("fp8"), "{error}");
    fail(&mut bench(Path::new("models/emoji-mmdit"), &["--repeats", "0"]), 2);
    fail(secateur().arg("bench"), 2);

    // The same class, and other defaults.
    let half = temporary.path().join("half");
    half_of_emoji_dit(&half);
    let manifest = half.join("secateur.json");
    let mut json: Value =
        serde_json::from_str(&std::fs::read_to_string(&manifest).unwrap()).unwrap();
    json["generation"]["steps"] = 7.into();
    std::fs::write(&manifest, json.to_string()).unwrap();
    let error = fail(secateur().args(["bench", "models/emoji-dit"]).arg(&half), 2);
    assert!(error.contains("--steps 7, not "), "{error}");
}
