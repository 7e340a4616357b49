//! The families against values of diffusers and transformers (`tests/goldens/README.md`).

#![expect(clippy::print_stdout, reason = "a test tells its figures")]

mod common;

use candle_core::{DType, Device, Tensor};
use secateur_models::{
    AutoencoderKl, AutoencoderKlConfig, Checkpoint, ClipModel, ClipTextConfig, ClipTextModel, ClipTokenizer,
    Conditioning, ModelFolder, Pipeline, Sampling,
};
use secateur_nn::Context;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

type Tensors = HashMap<String, Tensor>;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn goldens() -> PathBuf {
    std::env::var_os("SECATEUR_GOLDENS").map_or_else(|| project().join("tests/goldens"), PathBuf::from)
}

/// A fixture's path; `None`, and a line that says so, where the folder lacks it.
fn fixture(name: &str) -> Option<PathBuf> {
    let path = goldens().join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("SECATEUR_GOLDENS").is_some(), "the project's own fixture {} is gone", path.display());
    println!("skipped: {} is not there", path.display());
    None
}

fn tensors(path: &Path) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn cases() -> Value {
    serde_json::from_str(&std::fs::read_to_string(goldens().join("cases.json")).unwrap()).unwrap()
}

/// The folder of a bundled model, by its role in `cases.json`.
fn model(role: &str) -> PathBuf {
    project().join("models").join(cases()["models"][role].as_str().unwrap())
}

fn prompts() -> Vec<String> {
    cases()["prompts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_owned()).collect()
}

/// Relative difference in the Frobenius norm, in f64.
fn close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}: shape");
    let values = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let (got, want) = (values(got), values(want));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
    println!("{what}: relative error {error:.2e}");
    assert!(error <= tolerance, "{what}: relative error {error:.2e}, {tolerance:.0e} allowed");
}

#[test]
fn something_is_compared() {
    let known = [
        "tokenizer.json",
        "clip.safetensors",
        "mmdit_step.safetensors",
        "mmdit_run.safetensors",
        "vae.safetensors",
        "sd3_mmdit",
        "sd35_medium_mmdit",
        "flux_transformer",
        "sd15_unet",
        "sd21_unet",
        "sdxl_unet",
        "ddpm_unet",
        "sd_vae",
        "clip_l_text",
        "clip_g_text",
    ];
    assert!(known.iter().any(|name| goldens().join(name).exists()), "{} holds no fixture", goldens().display());
}

#[test]
fn tokenizer() {
    let Some(path) = fixture("tokenizer.json") else { return };
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let folder = model("mmdit").join("tokenizer");
    let older = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        std::fs::copy(folder.join(name), older.path().join(name)).unwrap();
    }
    for tokenizer in [ClipTokenizer::open(&folder).unwrap(), ClipTokenizer::open(older.path()).unwrap()] {
        for case in &cases {
            let want: Vec<u64> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            let got = tokenizer.encode(case["text"].as_str().unwrap()).unwrap();
            assert_eq!(got.into_iter().map(u64::from).collect::<Vec<_>>(), want, "{}", case["text"]);
        }
    }
}

#[test]
fn mmdit_step() {
    let Some(path) = fixture("mmdit_step.safetensors") else { return };
    let want = tensors(&path);
    let pipeline = Pipeline::open(ModelFolder::open(&model("mmdit"), None).unwrap()).unwrap();
    let length = cases()["mmdit"]["max_sequence_length"].as_u64().unwrap() as usize;
    let prompts = pipeline.encode_prompts(&prompts(), length).unwrap().spelled_out().unwrap();
    close("context", prompts.text().unwrap(), &want["context"], 1e-4);
    close("pooled", prompts.pooled().unwrap(), &want["pooled"], 1e-4);
    let samples = want["null_context"].dim(0).unwrap();
    let negative = cases()["negative_prompt"].as_str().unwrap().to_owned();
    let null = pipeline.encode_prompts(&vec![negative; samples], length).unwrap().spelled_out().unwrap();
    close("null context", null.text().unwrap(), &want["null_context"], 1e-4);
    close("null pooled", null.pooled().unwrap(), &want["null_pooled"], 1e-4);

    let conditioning = Conditioning {
        text: Some(want["context"].clone()),
        pooled: Some(want["pooled"].clone()),
        ..Conditioning::default()
    };
    let timesteps = want["timestep"].to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    let out = pipeline.denoiser().forward(&want["x"], &timesteps, &conditioning, &Context::default()).unwrap();
    close("step", &out, &want["out"], 1e-4);
}

#[test]
fn mmdit_run() {
    let Some(path) = fixture("mmdit_run.safetensors") else { return };
    let want = tensors(&path);
    let case = &cases()["mmdit"];
    let steps = case["steps"].as_u64().unwrap() as usize;
    let sampling = Sampling {
        steps,
        guidance: case["guidance"].as_f64().unwrap(),
        negative_prompt: cases()["negative_prompt"].as_str().unwrap().into(),
        max_sequence_length: case["max_sequence_length"].as_u64().unwrap() as usize,
        seed: 0,
        batch: prompts().len(),
    };
    let pipeline = Pipeline::open(ModelFolder::open(&model("mmdit"), None).unwrap()).unwrap();
    let mut seen = Vec::new();
    let record = |_, latents: &Tensor| {
        seen.push(latents.clone());
        Ok(())
    };
    let latents = pipeline.denoise(&want["noise"], &prompts(), 0..prompts().len(), &sampling, None, record).unwrap();
    assert_eq!(seen.len(), steps);
    close("after the first step", &seen[0], &want["after_first"], 1e-3);
    if steps > 1 {
        close("after half", &seen[steps / 2 - 1], &want["after_half"], 1e-3);
    }
    close("latents", &latents, &want["latents"], 1e-3);
    close("image", &pipeline.vae().pictures(&latents).unwrap(), &want["image"], 1e-3);
}

fn compare_vae(vae: &AutoencoderKl, want: &Tensors) {
    let (mean, logvar) = vae.encode(&want["image"]).unwrap();
    close("mean", &mean, &want["mean"], 1e-4);
    close("logvar", &logvar, &want["logvar"], 1e-4);
    close("decoded", &vae.decode(&want["latent"]).unwrap(), &want["decoded"], 1e-4);
}

#[test]
fn bundled_vae() {
    let Some(path) = fixture("vae.safetensors") else { return };
    compare_vae(&AutoencoderKl::open(&model("mmdit").join("vae"), None).unwrap(), &tensors(&path));
}

#[test]
fn vae_with_attention_and_quant_convs() {
    let Some(folder) = fixture("sd_vae") else { return };
    AutoencoderKlConfig::open(&folder.join("config.json")).unwrap();
    let vae = AutoencoderKl::open(&folder, None).unwrap();
    compare_vae(&vae, &tensors(&folder.join("io.safetensors")));
}

#[test]
fn clip() {
    let Some(path) = fixture("clip.safetensors") else { return };
    let want = tensors(&path);
    let clip = ClipModel::open(&model("clip")).unwrap();
    let texts = clip.embed_texts(&prompts()).unwrap();
    close("texts", &texts, &want["text_embeds"], 1e-4);
    let ids = want["ids"].to_dtype(DType::U32).unwrap();
    close("ids", &clip.embed_ids(&ids).unwrap(), &want["text_embeds"], 1e-4);
    let images = clip.embed_pixels(&want["pixels"]).unwrap();
    close("images", &images, &want["image_embeds"], 1e-4);
    // transformers 5 returns logits_per_image or per text; both are told by their transposes.
    let logits = clip.logits(&texts, &images).unwrap();
    close("logits", &logits.t().unwrap(), &want["logits"], 1e-4);
}

fn text_encoder(name: &str, projected: bool, pooled: &str) {
    let Some(folder) = fixture(name) else { return };
    let want = tensors(&folder.join("io.safetensors"));
    let config = ClipTextConfig::open(&folder.join("config.json")).unwrap();
    let weights = Checkpoint::open(&folder, "model", None).unwrap().load().unwrap();
    let encoder: ClipTextModel = weights
        .build(|scope| ClipTextModel::new(&config, projected, &scope))
        .map_err(|e: secateur_models::Error| e)
        .unwrap();
    let output = encoder.forward(&want["ids"].to_dtype(DType::U32).unwrap()).unwrap();
    close("last", &output.last, &want["last"], 1e-4);
    close("penultimate", &output.penultimate, &want["penultimate"], 1e-4);
    close("pooled", &output.pooled, &want[pooled], 1e-4);
}

#[test]
fn clip_l_text() {
    text_encoder("clip_l_text", false, "pooled");
}

#[test]
fn clip_g_text() {
    text_encoder("clip_g_text", true, "text_embeds");
}

/// One call of a family's small model.
fn denoiser(name: &str) {
    let Some(folder) = fixture(name) else { return };
    let want = tensors(&folder.join("io.safetensors"));
    let parameters = Checkpoint::open(&folder, "diffusion_pytorch_model", None).unwrap().load().unwrap();
    let out = parameters.build(common::call(&folder, &want, None)).unwrap();
    close(name, &out, &want["out"], 1e-4);
}

#[test]
fn sd3() {
    denoiser("sd3_mmdit");
}

#[test]
fn sd35_medium() {
    denoiser("sd35_medium_mmdit");
}

#[test]
fn flux() {
    denoiser("flux_transformer");
}

#[test]
fn one_text_token_stands_for_equal_ones() {
    for name in ["sd3_mmdit", "sd35_medium_mmdit", "flux_transformer"] {
        let Some(folder) = fixture(name) else { continue };
        let given = tensors(&folder.join("io.safetensors"));
        let parameters = Checkpoint::open(&folder, "diffusion_pytorch_model", None).unwrap().load().unwrap();
        let (samples, tokens, _) = given["context"].dims3().unwrap();
        let times: Vec<f32> = (0..samples * tokens).map(|i| if i % tokens == 1 { 3.0 } else { 1.0 }).collect();
        let times = Tensor::from_vec(times, (samples, tokens), &Device::Cpu).unwrap();
        let short = parameters.build(common::call(&folder, &given, Some(&times))).unwrap();
        let conditioning =
            Conditioning { text: Some(given["context"].clone()), multiplicity: Some(times), ..Conditioning::default() };
        let text = conditioning.spelled_out().unwrap().text.unwrap();
        let spelled_out = Tensors::from_iter(given.into_iter().chain([("context".to_owned(), text)]));
        let long = parameters.build(common::call(&folder, &spelled_out, None)).unwrap();
        close(name, &short, &long, 1e-5);
    }
}

#[test]
fn sd15() {
    denoiser("sd15_unet");
}

#[test]
fn sd21() {
    denoiser("sd21_unet");
}

#[test]
fn sdxl() {
    denoiser("sdxl_unet");
}

#[test]
fn ddpm() {
    denoiser("ddpm_unet");
}
