//! A gradient reaches every place of every family: each parameter is multiplied by a gate, and the
//! gradient of every gate is compared with finite differences. An operation that drops a gradient
//! silently is found wherever it stands.

#[path = "common/cases.rs"]
#[macro_use]
mod cases;
mod common;

use candle_core::{DType, Device, Tensor, Var};
use secateur_models::{
    Autoencoder, AutoencoderKl, AutoencoderKlConfig, AutoencoderTiny, Checkpoint, ClipTextConfig,
    ClipTextModel, Error, T5Config, T5Encoder,
};
use secateur_nn::{Context, Parameters, Scope};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name)
}

fn io(folder: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.join("io.safetensors"), &Device::Cpu).unwrap()
}

/// Compares the gradients of sum(output * cotangent) with respect to a gate on each parameter, at
/// gates of 1. `forward` builds the model and runs it.
fn every_gate(
    what: &str,
    parameters: &Parameters,
    forward: impl Fn(Scope<'_>) -> Result<Tensor, Error>,
) {
    let loss = |gates: &BTreeMap<String, Tensor>| -> Tensor {
        let mut gated = parameters.clone();
        for (name, gate) in gates {
            let parameter = parameters.get(name).unwrap().tensor().unwrap();
            gated.replace(name, parameter.broadcast_mul(gate).unwrap()).unwrap();
        }
        let output = gated.build(&forward).unwrap();
        // Waves of no period that the output could have.
        let cotangent: Vec<f32> =
            (0..output.elem_count()).map(|i| (i as f32 * 1.37).sin()).collect();
        let cotangent = Tensor::from_vec(cotangent, output.shape(), &Device::Cpu).unwrap();
        (output * cotangent).unwrap().sum_all().unwrap()
    };
    let one = Tensor::new(1f32, &Device::Cpu).unwrap();
    let names: Vec<String> = parameters.iter().map(|(name, _)| name.to_owned()).collect();
    let gates: BTreeMap<String, Var> =
        names.iter().map(|name| (name.clone(), Var::from_tensor(&one).unwrap())).collect();
    let tracked =
        gates.iter().map(|(name, gate)| (name.clone(), gate.as_tensor().clone())).collect();
    let gradients = loss(&tracked).backward().unwrap();

    const STEP: f64 = 0.01;
    let at = |name: &String, gate: f64| -> f64 {
        let gate = Tensor::new(gate as f32, &Device::Cpu).unwrap();
        f64::from(loss(&BTreeMap::from([(name.clone(), gate)])).to_scalar::<f32>().unwrap())
    };
    let differences: Vec<f64> = names
        .iter()
        .map(|name| (at(name, 1.0 + STEP) - at(name, 1.0 - STEP)) / (2.0 * STEP))
        .collect();
    let largest = differences.iter().fold(0f64, |largest, d| largest.max(d.abs()));
    assert!(largest > 0.0, "{what}: nothing depends on anything");
    for (name, difference) in names.iter().zip(differences) {
        let gradient =
            gradients.get(&gates[name]).map_or(0.0, |g| f64::from(g.to_scalar::<f32>().unwrap()));
        let error = (gradient - difference).abs();
        assert!(
            error < 0.01 * difference.abs() + 1e-3 * largest,
            "{what}, {name}: gradient {gradient}, finite difference {difference}"
        );
    }
}

fn denoiser(name: &str, multiplicity: Option<&Tensor>) {
    let folder = fixture(name);
    let given = io(&folder);
    let parameters =
        Checkpoint::open(&folder, "diffusion_pytorch_model", None).unwrap().load().unwrap();
    every_gate(name, &parameters, common::call(&folder, &given, multiplicity, Context::default()));
}

/// Also with text tokens of another multiplicity than 1.
fn joint(name: &str) {
    denoiser(name, None);
    let (samples, tokens, _) = io(&fixture(name))["context"].dims3().unwrap();
    let mut multiplicity = vec![1f32; samples * tokens];
    multiplicity[tokens - 1] = 3.0;
    multiplicity[tokens] = 0.0;
    let multiplicity = Tensor::from_vec(multiplicity, (samples, tokens), &Device::Cpu).unwrap();
    denoiser(name, Some(&multiplicity));
}

#[test]
fn pixart() {
    denoiser("pixart_transformer", None);
    denoiser("pixart_sized_transformer", None);
}

#[test]
fn autoencoder() {
    let folder = fixture("sd_vae");
    let config = AutoencoderKlConfig::open(&folder.join("config.json")).unwrap();
    let parameters =
        Checkpoint::open(&folder, "diffusion_pytorch_model", None).unwrap().load().unwrap();
    let picture: Vec<f32> = (0..3 * 32 * 32).map(|i| (i as f32 * 0.613).sin()).collect();
    let picture = Tensor::from_vec(picture, (1, 3, 32, 32), &Device::Cpu).unwrap();
    every_gate("sd_vae", &parameters, |scope| {
        let model = AutoencoderKl::new(&config, &scope.into())?;
        model.decode(&model.encode(&picture)?.0)
    });
}

#[test]
fn text_encoder() {
    let folder = fixture("clip_g_text");
    let ids = io(&folder)["ids"].to_dtype(DType::U32).unwrap();
    let config = ClipTextConfig::open(&folder.join("config.json")).unwrap();
    let parameters = Checkpoint::open(&folder, "model", None).unwrap().load().unwrap();
    every_gate("clip_g_text", &parameters, |scope| {
        let output = ClipTextModel::new(&config, true, &scope.into())?.forward(&ids)?;
        Ok(Tensor::cat(&[output.penultimate.flatten_all()?, output.pooled.flatten_all()?], 0)?)
    });
}

/// Within any step some ReLU bends: the gradient of pictures, through both halves, is compared with
/// PyTorch's.
#[test]
fn tiny_autoencoder() {
    let folder = fixture("tiny_vae");
    let given = io(&folder);
    let model = AutoencoderTiny::open(&folder, None).unwrap();
    let pictures = Var::from_tensor(&given["image"]).unwrap();
    let output = model.decode(&model.encode(&pictures).unwrap()).unwrap();
    let gradients = output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let want = &given["gradient"];
    let error = norm(&(gradients.get(&pictures).unwrap() - want).unwrap()) / norm(want);
    assert!(error < 1e-4, "relative error {error:.2e}");
}

#[test]
fn t5_encoder() {
    let folder = fixture("t5_encoder");
    let given = io(&folder);
    let ids = given["ids"].to_dtype(DType::U32).unwrap();
    let config = T5Config::open(&folder.join("config.json")).unwrap();
    let parameters = Checkpoint::open(&folder, "model", None).unwrap().load().unwrap();
    every_gate("t5_encoder", &parameters, |scope| {
        T5Encoder::new(&config, &scope)?.forward(&ids, Some(&given["mask"]))
    });
}

tests! {
    joint {
        sd3("sd3_mmdit");
        sd35_medium("sd35_medium_mmdit");
        flux("flux_transformer");
    }
    denoiser {
        sd15("sd15_unet", None);
        sdxl("sdxl_unet", None);
        ddpm("ddpm_unet", None);
        dit("dit_transformer", None);
    }
}
