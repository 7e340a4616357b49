//! The families against values of diffusers and transformers (`tests/goldens/README.md`).

#![expect(clippy::print_stdout, reason = "a test tells its figures")]

#[cfg(unix)]
#[path = "common/assemble.rs"]
mod assemble;
#[path = "common/cases.rs"]
#[macro_use]
mod cases;
mod common;

use candle_core::{DType, Device, Tensor};
use secateur_models::{
    Autoencoder, AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, Checkpoint, ClipModel,
    ClipTextConfig, ClipTextModel, ClipTokenizer, Conditioning, Denoising, ModelFolder, Pipeline,
    Sampler, Sampling, T5Encoder, T5Tokenizer, autoencoder_config,
};
use secateur_nn::{Context, Placement, devices};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

type Tensors = HashMap<String, Tensor>;

/// The project; on another machine than it was built on, where `CARGO_MANIFEST_DIR` says.
fn project() -> PathBuf {
    let built = || env!("CARGO_MANIFEST_DIR").into();
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(built)).join("../..")
}

fn goldens() -> PathBuf {
    std::env::var_os("SECATEUR_GOLDENS")
        .map_or_else(|| project().join("tests/goldens"), PathBuf::from)
}

/// A fixture's path; `None`, and a line that says so, where the folder lacks it.
fn fixture(name: &str) -> Option<PathBuf> {
    let path = goldens().join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var_os("SECATEUR_GOLDENS").is_some(),
        "the project's own fixture {} is gone",
        path.display()
    );
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

/// Everywhere that a model can be, and how far a result may differ there, where `tolerance` is
/// allowed in `f32`.
fn placements(tolerance: f64) -> Vec<(Placement, f64)> {
    let of = |device: Device| match device {
        Device::Cpu => vec![(Placement::cpu(), tolerance)],
        device => vec![
            (Placement::new(device.clone(), DType::F32), tolerance),
            (Placement::new(device.clone(), DType::BF16), tolerance.max(2e-2)),
            (Placement::new(device, DType::F16), tolerance.max(1e-2)),
        ],
    };
    devices().into_iter().flat_map(of).collect()
}

/// Relative difference in the Frobenius norm, in f64.
fn close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}: shape");
    let (got, want) = (&Placement::cpu().bring(got).unwrap(), want);
    let values = |t: &Tensor| {
        t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
    };
    let (got, want) = (values(got), values(want));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let error =
        norm(&mut got.iter().zip(&want).map(|(g, w)| g - w)) / norm(&mut want.iter().copied());
    println!("{what}: relative error {error:.2e}");
    assert!(error <= tolerance, "{what}: relative error {error:.2e}, {tolerance:.0e} allowed");
}

#[test]
fn something_is_compared() {
    let known = "tokenizer.json clip.safetensors mmdit_step.safetensors mmdit_run.safetensors \
        unet_step.safetensors unet_run.safetensors unet_sched_euler.safetensors \
        dit_run.safetensors dit_step.safetensors vae.safetensors sd3_mmdit sd35_medium_mmdit \
        flux_transformer sd15_unet sd21_unet sdxl_unet ddpm_unet dit_transformer \
        pixart_transformer pixart_sized_transformer sd_vae clip_l_text clip_g_text \
        t5_encoder t5_tokenizer tiny_vae";
    assert!(
        known.split(' ').any(|name| goldens().join(name).exists()),
        "{} holds no fixture",
        goldens().display()
    );
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
    for tokenizer in
        [ClipTokenizer::open(&folder).unwrap(), ClipTokenizer::open(older.path()).unwrap()]
    {
        for case in &cases {
            let want: Vec<u64> =
                case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
            let got = tokenizer.encode(case["text"].as_str().unwrap()).unwrap();
            assert_eq!(
                got.into_iter().map(u64::from).collect::<Vec<_>>(),
                want,
                "{}",
                case["text"]
            );
        }
    }
}

#[test]
fn t5_tokenizer() {
    let Some(folder) = fixture("t5_tokenizer") else { return };
    let cases: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(folder.join("cases.json")).unwrap()).unwrap();
    let tokenizer = T5Tokenizer::open(&folder).unwrap();
    for case in &cases {
        let numbers = |key: &str| -> Vec<u32> {
            case[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|number| number.as_u64().unwrap() as u32)
                .collect()
        };
        let length = case["length"].as_u64().unwrap() as usize;
        let text = case["text"].as_str().unwrap().to_owned();
        let (ids, mask) = tokenizer.encode_batch(std::slice::from_ref(&text), length).unwrap();
        let row = |tensor: Tensor| {
            tensor.to_dtype(DType::U32).unwrap().squeeze(0).unwrap().to_vec1::<u32>().unwrap()
        };
        assert_eq!(row(ids), numbers("ids"), "{text:?}");
        assert_eq!(row(mask), numbers("mask"), "{text:?}");
    }
}

/// A `spiece.model` alone, whose tokens are followed by those for gaps, the last one first, unless
/// the configuration numbers them.
#[test]
fn sentencepiece_model() {
    let Some(folder) = fixture("t5_spiece") else { return };
    let mut cases: Vec<(String, Vec<u32>)> = Vec::new();
    let of_library = std::fs::read_to_string(folder.join("cases.json")).unwrap();
    for case in serde_json::from_str::<Vec<Value>>(&of_library).unwrap() {
        let ids = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32);
        cases.push((case["text"].as_str().unwrap().to_owned(), ids.collect()));
    }
    cases.push(("<extra_id_0><extra_id_1>".into(), vec![301, 300]));
    cases.push(("</s><pad>".into(), vec![1, 0]));
    let numbered = serde_json::json!({"added_tokens_decoder": {
        "300": {"content": "<extra_id_1>", "special": true}, "301": {"content": "<extra_id_0>",
        "special": true},
    }});
    let copied = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("spiece.model"), copied.path().join("spiece.model")).unwrap();
    std::fs::write(copied.path().join("tokenizer_config.json"), numbered.to_string()).unwrap();
    for folder in [folder.as_path(), copied.path()] {
        let tokenizer = T5Tokenizer::open(folder).unwrap();
        for (text, ids) in &cases {
            let row = tokenizer.encode_batch(std::slice::from_ref(text), ids.len() + 1).unwrap().0;
            let row = row.squeeze(0).unwrap().to_vec1::<u32>().unwrap();
            assert_eq!(row, [&ids[..], &[1]].concat(), "{text:?}");
        }
    }
    let bytes = std::fs::read(folder.join("spiece.model")).unwrap();
    for damaged in [&b""[..], &bytes[..bytes.len() - 1], b"not a model"] {
        std::fs::write(copied.path().join("spiece.model"), damaged).unwrap();
        let error = T5Tokenizer::open(copied.path()).unwrap_err().to_string();
        assert!(error.contains("spiece.model: is no model of sentencepiece"), "{error}");
    }
}

/// SD2 and SDXL pad with "!", which is a token of its own wherever it stands: said in one of two
/// files. The numbers are those of transformers 5.17.
#[test]
fn padding_that_is_a_token_of_its_own() {
    let source = project().join("models/emoji-unet/tokenizer");
    let read = |name: &str| std::fs::read_to_string(source.join(name)).unwrap();
    let token = |text: &str, normalized: bool| {
        serde_json::json!({
            "content": text, "lstrip": false, "normalized": normalized, "rstrip": false,
            "single_word": false,
            "special": true,
        })
    };
    let map = serde_json::json!({
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "!",
        "unk_token": "<|endoftext|>",
    });
    let added = serde_json::json!({
        "0": token("!", false), "2012": token("<|startoftext|>", true),
        "2013": token("<|endoftext|>", false),
    });
    for in_map in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let mut config: Value = serde_json::from_str(&read("tokenizer_config.json")).unwrap();
        config["model_max_length"] = 12.into();
        if in_map {
            write("special_tokens_map.json", &map.to_string());
        } else {
            config["pad_token"] = "!".into();
            config["added_tokens_decoder"] = added.clone();
        }
        write("tokenizer_config.json", &config.to_string());
        write("vocab.json", &read("vocab.json"));
        write("merges.txt", &read("merges.txt"));
        let tokenizer = ClipTokenizer::open(folder.path()).unwrap();
        for (text, ids) in [
            ("red apple! cat", [2012, 753, 1574, 0, 863, 2013, 0, 0, 0, 0, 0, 0]),
            ("wow!!", [2012, 557, 342, 0, 0, 2013, 0, 0, 0, 0, 0, 0]),
            ("a", [2012, 320, 2013, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text}");
        }
    }
}

/// The conditioning of the prompts and of none, and one call of the denoiser.
fn step(role: &str) {
    let Some(path) = fixture(&format!("{role}_step.safetensors")) else { return };
    let want = tensors(&path);
    assert_eq!(want.contains_key("pooled") && want.contains_key("null_pooled"), role == "mmdit");
    let pipeline = Pipeline::open(ModelFolder::open(&model(role), None).unwrap()).unwrap();
    let (sampling, size) = (sampling(role), size_of(&want["x"]));
    let negative = vec![sampling.negative_prompt.clone(); want["null_context"].dim(0).unwrap()];
    for (kind, prompts) in [("", prompts()), ("null_", negative)] {
        let told = pipeline.conditioning(&prompts, size, &sampling).unwrap().spelled_out().unwrap();
        let (context, pooled) = (format!("{kind}context"), format!("{kind}pooled"));
        close(&context, told.text().unwrap(), &want[&context], 1e-4);
        if let Some(want) = want.get(&pooled) {
            close(&pooled, told.pooled().unwrap(), want, 1e-4);
        }
    }
    let conditioning = Conditioning {
        text: Some(want["context"].clone()),
        pooled: want.get("pooled").cloned(),
        ..Conditioning::default()
    };
    let timesteps = want["timestep"].to_dtype(DType::F32).unwrap();
    let out = pipeline
        .denoiser()
        .forward(&want["x"], &timesteps, &conditioning, &Context::default())
        .unwrap();
    close("step", &out, &want["out"], 1e-4);
}

/// How `cases.json` samples a model.
fn sampling(role: &str) -> Sampling {
    let cases = cases();
    let case = &cases[role];
    Sampling {
        steps: case["steps"].as_u64().unwrap() as usize,
        guidance: case["guidance"].as_f64().unwrap(),
        negative_prompt: cases["negative_prompt"].as_str().unwrap().into(),
        max_sequence_length: case["max_sequence_length"].as_u64().unwrap_or(0) as usize,
        ..ModelFolder::open(&model(role), None).unwrap().sampling()
    }
}

fn size_of(latents: &Tensor) -> (usize, usize) {
    let (_, _, height, width) = latents.dims4().unwrap();
    (height, width)
}

/// A whole run; not every fixture holds all of what is compared.
fn run(folder: &Path, fixture: &Path, prompts: &[String], sampling: &Sampling) {
    for device in devices() {
        run_at(&Placement::new(device, DType::F32), folder, fixture, prompts, sampling);
    }
}

fn run_at(
    placement: &Placement,
    folder: &Path,
    fixture: &Path,
    prompts: &[String],
    sampling: &Sampling,
) {
    let want = tensors(fixture);
    let folder = ModelFolder::open(folder, None).unwrap().at(placement.clone());
    let pipeline = Pipeline::open(folder).unwrap();
    let mut seen = Vec::new();
    let noise = &want["noise"];
    let told = pipeline.guided_conditioning(prompts, size_of(noise), sampling).unwrap();
    let mut denoising =
        Denoising::new(&pipeline, noise, &told, 0..prompts.len(), sampling, None).unwrap();
    while denoising.step().unwrap() {
        seen.push(denoising.latents().clone());
    }
    let latents = denoising.latents();
    assert_eq!(seen.len(), sampling.steps);
    let pictures = pipeline.pictures(latents).unwrap();
    let half = &seen[(sampling.steps / 2).max(1) - 1];
    let found = [
        ("after_first", &seen[0]),
        ("after_half", half),
        ("latents", latents),
        ("image", &pictures),
    ];
    let mut compared = 0;
    for (name, found) in found {
        if let Some(want) = want.get(name) {
            close(&format!("{name}, {placement:?}"), found, want, 1e-3);
            compared += 1;
        }
    }
    assert!(compared > 0, "{} holds nothing to compare", fixture.display());
}

/// A copy of a bundled model's folder with another `scheduler_config.json`; the other files are
/// links.
#[cfg(unix)]
fn with_scheduler(role: &str, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let (folder, source) = (tempfile::tempdir().unwrap(), model(role).canonicalize().unwrap());
    for entry in std::fs::read_dir(&source).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "scheduler" {
            std::os::unix::fs::symlink(entry.path(), folder.path().join(entry.file_name()))
                .unwrap();
        }
    }
    let path = "scheduler/scheduler_config.json";
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(source.join(path)).unwrap()).unwrap();
    change(&mut config);
    std::fs::create_dir(folder.path().join("scheduler")).unwrap();
    std::fs::write(folder.path().join(path), config.to_string()).unwrap();
    folder
}

/// Whole runs of the pipelines that no bundled model is of.
#[cfg(unix)]
#[test]
fn small_pipelines() {
    let Some(folder) = fixture("pipelines") else { return };
    for name in
        ["stable_diffusion_2", "stable_diffusion_xl", "stable_diffusion_3", "flux", "pixart"]
    {
        println!("{name}:");
        let model = assemble::assemble(&goldens(), name);
        let told = std::fs::read_to_string(folder.join(name).join("run.json")).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        let prompts: Vec<String> = serde_json::from_value(told["prompts"].clone()).unwrap();
        let sampling = Sampling {
            negative_prompt: told["negative_prompt"].as_str().unwrap().into(),
            ..ModelFolder::open(model.path(), None).unwrap().sampling()
        };
        run(model.path(), &folder.join(name).join("run.safetensors"), &prompts, &sampling);
    }
}

/// In `f16` the T5 stays in `f32`, and the CLIP takes half.
#[cfg(unix)]
#[test]
fn memory_of_text_encoders() {
    let Some(_) = fixture("pipelines") else { return };
    let model = assemble::assemble(&goldens(), "flux");
    let [whole, half, brain] = [DType::F32, DType::F16, DType::BF16].map(|dtype| {
        let placement = Placement::new(Device::Cpu, dtype);
        let folder = ModelFolder::open(model.path(), None).unwrap().at(placement);
        folder.text_encoder_memory().weights
    });
    let clip = 2 * (whole - half);
    assert!(clip > 0 && clip < whole, "CLIP {clip} of {whole}");
    assert_eq!(2 * brain, whole);
}

fn run_of(role: &str, prompts: &[String]) {
    let Some(path) = fixture(&format!("{role}_run.safetensors")) else { return };
    run(&model(role), &path, prompts, &sampling(role));
}

/// Pictures of the bundled models on a GPU against the CPU's, by PSNR in decibels.
#[test]
fn pictures_of_a_gpu() {
    let draw = |placement: Placement, role: &str, prompts: &[String]| {
        let sampling = sampling(role);
        let folder = ModelFolder::open(&model(role), None).unwrap().at(placement);
        let pipeline = Pipeline::open(folder).unwrap();
        let noise = pipeline.noise(0..prompts.len(), &sampling).unwrap();
        let told = pipeline.guided_conditioning(prompts, size_of(&noise), &sampling).unwrap();
        let all = 0..prompts.len();
        let mut denoising = Denoising::new(&pipeline, &noise, &told, all, &sampling, None).unwrap();
        while denoising.step().unwrap() {}
        let pictures = pipeline.pictures(denoising.latents()).unwrap();
        Placement::cpu().bring(&pictures).unwrap()
    };
    for device in devices().into_iter().filter(|device| !device.is_cpu()) {
        for (role, prompts) in [("mmdit", prompts()), ("unet", prompts()), ("dit", labels())] {
            let want = draw(Placement::cpu(), role, &prompts);
            for (dtype, least) in [(DType::F32, 50.0), (DType::BF16, 30.0), (DType::F16, 30.0)] {
                let got = draw(Placement::new(device.clone(), dtype), role, &prompts);
                for index in 0..prompts.len() {
                    let of = |all: &Tensor| all.get(index).unwrap();
                    let square = (of(&got) - of(&want)).unwrap().sqr().unwrap();
                    let mean = square.mean_all().unwrap().to_scalar::<f32>().unwrap();
                    let psnr = -10.0 * mean.log10();
                    println!("{role} in {dtype:?}, picture {index}: {psnr:.1} dB");
                    assert!(psnr >= least, "{role} in {dtype:?}: {psnr:.1} dB of {least}");
                }
            }
        }
    }
}

fn labels() -> Vec<String> {
    cases()["dit"]["labels"].as_array().unwrap().iter().map(Value::to_string).collect()
}

#[cfg(unix)]
#[test]
fn unet_samplers() {
    let steps = cases()["unet"]["scheduler_steps"].as_u64().unwrap() as usize;
    for (name, sampler) in [
        ("dpmpp_2m", Sampler::DpmSolver),
        ("euler", Sampler::Euler),
        ("heun", Sampler::Heun),
        ("pndm", Sampler::Pndm),
        ("ddim_trailing", Sampler::Ddim),
    ] {
        let Some(path) = fixture(&format!("unet_sched_{name}.safetensors")) else { continue };
        println!("{name}:");
        let sampling = Sampling { steps, sampler, ..sampling("unet") };
        let trailing =
            with_scheduler("unet", |config| config["timestep_spacing"] = "trailing".into());
        let folder = if sampler == Sampler::Ddim { trailing.path() } else { &model("unet") };
        run(folder, &path, &prompts(), &sampling);
    }
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

/// Files of older days: other names for the attention's linears, which are 1x1 convolutions, and
/// nothing in the configuration that is diffusers' default.
#[test]
fn vae_of_old_names() {
    let Some(folder) = fixture("sd_vae") else { return };
    let names = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")];
    let old = |(mut name, mut tensor): (String, Tensor)| {
        for (new, old) in names {
            let renamed = name.replace(&format!(".{new}."), &format!(".{old}."));
            if renamed != name && tensor.rank() == 2 {
                tensor = tensor.unsqueeze(2).unwrap().unsqueeze(3).unwrap();
            }
            name = renamed;
        }
        (name, tensor)
    };
    let weights: Tensors =
        tensors(&folder.join("diffusion_pytorch_model.safetensors")).into_iter().map(old).collect();
    assert!(weights.keys().any(|name| name.contains(".proj_attn.")));
    let older = tempfile::tempdir().unwrap();
    candle_core::safetensors::save(
        &weights,
        older.path().join("diffusion_pytorch_model.safetensors"),
    )
    .unwrap();
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap())
            .unwrap();
    let defaults = serde_json::json!({
        "scaling_factor": 0.18215, "act_fn": "silu", "mid_block_add_attention": true,
        "use_quant_conv": true,
        "use_post_quant_conv": true,
    });
    config.as_object_mut().unwrap().retain(|key, value| defaults.get(key) != Some(value));
    std::fs::write(older.path().join("config.json"), config.to_string()).unwrap();
    let want = tensors(&folder.join("io.safetensors"));
    compare_vae(&AutoencoderKl::open(older.path(), None).unwrap(), &want);
    let pictures = |folder: &Path| {
        AutoencoderKl::open(folder, None).unwrap().pictures(&want["latent"], true).unwrap()
    };
    close("pictures", &pictures(older.path()), &pictures(&folder), 0.0);
}

#[test]
fn tiny_vae() {
    let Some(folder) = fixture("tiny_vae") else { return };
    let want = tensors(&folder.join("io.safetensors"));
    let vae = AutoencoderTiny::open(&folder, None).unwrap();
    close("encoded", &vae.encode(&want["image"]).unwrap(), &want["encoded"], 1e-4);
    close("decoded", &vae.decode(&want["latent"]).unwrap(), &want["decoded"], 1e-4);
    let config = autoencoder_config(&folder.join("config.json")).unwrap();
    for (placement, tolerance) in placements(1e-4) {
        let checkpoint = Checkpoint::open(&folder, "diffusion_pytorch_model", None).unwrap();
        let vae = config.load(&checkpoint.at(&placement)).unwrap();
        let latents = placement.bring(&want["latent"]).unwrap();
        let pictures = vae.pictures(&latents, true).unwrap();
        close(&format!("pictures, {placement:?}"), &pictures, &want["pictures"], tolerance);
    }
    assert_eq!(config.factor(), want["image"].dim(3).unwrap() / want["latent"].dim(3).unwrap());
}

#[test]
fn autoencoders_that_cannot_be_are_refused() {
    let tiny = serde_json::json!({"_class_name": "AutoencoderTiny"});
    let kl = serde_json::json!({"_class_name": "AutoencoderKL"});
    for (config, key, value) in [
        (&kl, "_class_name", serde_json::json!("VQModel")),
        (&kl, "act_fn", "relu".into()),
        (&kl, "latent_channels", 0.into()),
        (&kl, "layers_per_block", 0.into()),
        (&kl, "scaling_factor", 0.into()),
        (&kl, "block_out_channels", vec![64, 64].into()),
        (&tiny, "act_fn", "silu".into()),
        (&tiny, "upsample_fn", "bilinear".into()),
        (&tiny, "latent_channels", 0.into()),
        (&tiny, "num_encoder_blocks", vec![1].into()),
        (&tiny, "decoder_block_out_channels", vec![64, 64, 64, 32].into()),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config.clone();
        config[key] = value;
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = autoencoder_config(&folder.path().join("config.json")).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
}

#[test]
fn clip() {
    let Some(path) = fixture("clip.safetensors") else { return };
    let want = tensors(&path);
    for device in devices() {
        // In f32, whatever the pictures are drawn in.
        let clip = ClipModel::open(&model("clip"), &Placement::new(device, DType::BF16)).unwrap();
        let texts = clip.embed_texts(&prompts()).unwrap();
        close("texts", &texts, &want["text_embeds"], 1e-4);
        let ids = want["ids"].to_dtype(DType::U32).unwrap();
        close("ids", &clip.embed_ids(&ids).unwrap(), &want["text_embeds"], 1e-4);
        let images = clip.embed_pixels(&want["pixels"]).unwrap();
        close("images", &images, &want["image_embeds"], 1e-4);
        // transformers 5 returns logits_per_image or per text; each is the transpose of the other.
        let logits = clip.logits(&texts, &images).unwrap();
        close("logits", &logits.t().unwrap(), &want["logits"], 1e-4);
    }
}

fn text_encoder(name: &str, projected: bool, pooled: &str) {
    let Some(folder) = fixture(name) else { return };
    let want = tensors(&folder.join("io.safetensors"));
    let config = ClipTextConfig::open(&folder.join("config.json")).unwrap();
    for (placement, tolerance) in placements(1e-4) {
        let checkpoint = Checkpoint::open(&folder, "model", None).unwrap();
        let weights = checkpoint.at(&placement).load().unwrap();
        let encoder: ClipTextModel = weights
            .build(|scope| ClipTextModel::new(&config, projected, &scope.into()))
            .map_err(|e: secateur_models::Error| e)
            .unwrap();
        let output = encoder.forward(&want["ids"].to_dtype(DType::U32).unwrap()).unwrap();
        let close = |what: &str, got: &Tensor, want: &Tensor| {
            close(&format!("{what}, {placement:?}"), got, want, tolerance);
        };
        close("last", &output.last, &want["last"]);
        close("penultimate", &output.penultimate, &want["penultimate"]);
        close("pooled", &output.pooled, &want[pooled]);
    }
}

#[test]
fn t5_encoder() {
    let Some(folder) = fixture("t5_encoder") else { return };
    let want = tensors(&folder.join("io.safetensors"));
    let ids = want["ids"].to_dtype(DType::U32).unwrap();
    for (placement, tolerance) in placements(1e-4) {
        let encoder = T5Encoder::open(&folder, None, &placement).unwrap();
        let close = |what: &str, mask: Option<&Tensor>, want: &Tensor| {
            let got = encoder.forward(&ids, mask).unwrap();
            close(&format!("{what}, {placement:?}"), &got, want, tolerance);
        };
        close("with a mask", Some(&want["mask"]), &want["out"]);
        close("without", None, &want["out_nomask"]);
    }
}

/// One call of a denoiser, with the inputs of a fixture.
fn compare_denoiser(what: &str, folder: &Path, want: &Tensors, tolerance: f64) {
    for (placement, tolerance) in placements(tolerance) {
        let checkpoint = Checkpoint::open(folder, "diffusion_pytorch_model", None).unwrap();
        let parameters = checkpoint.at(&placement).load().unwrap();
        let out = parameters.build(common::call(folder, want, None, Context::default())).unwrap();
        close(&format!("{what}, {placement:?}"), &out, &want["out"], tolerance);
    }
}

/// One call of a family's small model.
fn denoiser(name: &str) {
    let Some(folder) = fixture(name) else { return };
    compare_denoiser(name, &folder, &tensors(&folder.join("io.safetensors")), 1e-4);
}

/// The same where the fixture's positions, which are computed and not stored, were rounded to fp16
/// with the weights.
fn denoiser_of_rounded_positions(name: &str) {
    let Some(folder) = fixture(name) else { return };
    compare_denoiser(name, &folder, &tensors(&folder.join("io.safetensors")), 3e-4);
}

#[test]
fn dit_step() {
    let Some(path) = fixture("dit_step.safetensors") else { return };
    compare_denoiser("dit_step", &model("dit").join("transformer"), &tensors(&path), 1e-4);
}

#[test]
fn one_text_token_stands_for_equal_ones() {
    for name in ["sd3_mmdit", "sd35_medium_mmdit", "flux_transformer"] {
        let Some(folder) = fixture(name) else { continue };
        let given = tensors(&folder.join("io.safetensors"));
        let parameters =
            Checkpoint::open(&folder, "diffusion_pytorch_model", None).unwrap().load().unwrap();
        let (samples, tokens, _) = given["context"].dims3().unwrap();
        let times: Vec<f32> =
            (0..samples * tokens).map(|i| if i % tokens == 1 { 3.0 } else { 1.0 }).collect();
        let times = Tensor::from_vec(times, (samples, tokens), &Device::Cpu).unwrap();
        let short = parameters
            .build(common::call(&folder, &given, Some(&times), Context::default()))
            .unwrap();
        let conditioning = Conditioning {
            text: Some(given["context"].clone()),
            multiplicity: Some(times),
            ..Conditioning::default()
        };
        let text = conditioning.spelled_out().unwrap().text.unwrap();
        let spelled_out =
            Tensors::from_iter(given.into_iter().chain([("context".to_owned(), text)]));
        let long = parameters
            .build(common::call(&folder, &spelled_out, None, Context::default()))
            .unwrap();
        close(name, &short, &long, 1e-5);
    }
}

tests! {
    step {
        mmdit_step("mmdit");
        unet_step("unet");
    }
    run_of {
        mmdit_run("mmdit", &prompts());
        unet_run("unet", &prompts());
        dit_run("dit", &labels());
    }
    denoiser {
        sd3("sd3_mmdit");
        sd35_medium("sd35_medium_mmdit");
        flux("flux_transformer");
        sd15("sd15_unet");
        sd21("sd21_unet");
        sdxl("sdxl_unet");
        ddpm("ddpm_unet");
        pixart_sized("pixart_sized_transformer");
    }
    denoiser_of_rounded_positions {
        dit("dit_transformer");
        pixart("pixart_transformer");
    }
    text_encoder {
        clip_l_text("clip_l_text", false, "pooled");
        clip_g_text("clip_g_text", true, "text_embeds");
    }
}
