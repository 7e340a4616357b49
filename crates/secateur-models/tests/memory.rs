//! What a call is said to take, against what it holds: a counting allocator sees every byte. A
//! process of its own: nothing else may run beside it.

#[path = "common/counting.rs"]
mod counting;

use candle_core::{DType, Device, Tensor};
use secateur_models::{Checkpoint, Conditioning, Geometry, Operation, Removals, denoiser_config};
use secateur_nn::{Context, Parameters};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The most that loading and calling held over what was held before, and what was said.
fn measure(config: &Path, checkpoint: &Checkpoint, samples: usize, text: usize) -> (f64, f64) {
    let config = denoiser_config(config).unwrap();
    let [channels, height, width] = config.latent_shape();
    let structure = config.structure(&Geometry { latent: (height, width), text }).unwrap();
    let columns = |names: &[&str]| {
        let mut layers = structure
            .layers()
            .filter(|layer| names.iter().any(|name| layer.name.as_str().ends_with(name)));
        layers.find_map(|layer| match layer.operation {
            Operation::Linear { inputs, .. } => Some(inputs),
            _ => None,
        })
    };
    let random = |shape: &[usize]| Tensor::randn(0f32, 1f32, shape, &Device::Cpu).unwrap();
    let conditioning = Conditioning {
        text: columns(&["context_embedder", "caption_projection.linear_1", "attn2.to_k"])
            .map(|width| random(&[samples, text, width])),
        pooled: columns(&["text_embedder.linear_1"]).map(|width| random(&[samples, width])),
        labels: Some(Tensor::zeros(samples, DType::U32, &Device::Cpu).unwrap()),
        guidance: Some(Tensor::full(3.5f32, samples, &Device::Cpu).unwrap()),
        ..Conditioning::default()
    };
    let latents = random(&[samples, channels, height, width]);
    let parameters =
        checkpoint.tensors().map(|(_, info)| info.shape.iter().product::<usize>() as u64).sum();
    let said = structure.memory(parameters, samples).total() as f64;
    let held = counting::most_held(|| {
        let parameters: Parameters = checkpoint.load().unwrap();
        let model = parameters.build(|scope| config.build(&scope.into())).unwrap();
        let times = Tensor::full(500f32, samples, &Device::Cpu).unwrap();
        model.forward(&latents, &times, &conditioning, &Context::default()).unwrap();
    });
    (held as f64, said)
}

/// A wide, short model with random weights, whose activations are a good part of its memory: a
/// configuration with some options changed.
fn wide(folder: &Path, config: &str, options: &[(&str, usize)]) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(config);
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    for &(name, value) in options {
        config[name] = value.into();
    }
    std::fs::create_dir(folder).unwrap();
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    let config = denoiser_config(&path).unwrap();
    let wanted = config.parameters(&Removals::default()).unwrap().into_iter();
    let tensors: HashMap<String, Tensor> = wanted
        .map(|(name, wanted)| {
            (name, Tensor::randn(0f32, 0.02, wanted.shape, &Device::Cpu).unwrap())
        })
        .collect();
    candle_core::safetensors::save(&tensors, folder.join("diffusion_pytorch_model.safetensors"))
        .unwrap();
    folder.into()
}

fn wide_mmdit(folder: &Path) -> PathBuf {
    const WIDTH: usize = 12 * 32;
    let options = [
        ("num_layers", 2),
        ("sample_size", 48),
        ("pos_embed_max_size", 24),
        ("num_attention_heads", 12),
        ("caption_projection_dim", WIDTH),
    ];
    wide(folder, "models/emoji-mmdit/transformer/config.json", &options)
}

fn wide_pixart(folder: &Path) -> PathBuf {
    const WIDTH: usize = 12 * 32;
    let options = [
        ("sample_size", 48),
        ("num_attention_heads", 12),
        ("attention_head_dim", 32),
        ("cross_attention_dim", WIDTH),
        ("caption_channels", 256),
    ];
    wide(folder, "tests/goldens/pixart_transformer/config.json", &options)
}

#[test]
fn a_call_takes_what_it_is_said_to_take() {
    let folder = tempfile::tempdir().unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let wide_mmdit = wide_mmdit(&folder.path().join("mmdit"));
    let wide_pixart = wide_pixart(&folder.path().join("pixart"));
    let mmdit = models.join("emoji-mmdit/transformer");
    let unet = models.join("emoji-unet/unet");
    let dit = models.join("emoji-dit/transformer");
    let flux = models.join("../tests/goldens/flux_transformer");
    for (what, folder, samples, text) in [
        ("wide", &wide_mmdit, 12, 40),
        ("wide PixArt", &wide_pixart, 12, 40),
        ("emoji-mmdit", &mmdit, 16, 33),
        ("flux", &flux, 2, 600),
        ("emoji-unet, one sample", &unet, 1, 32),
        ("emoji-unet", &unet, 24, 32),
        ("emoji-dit, one sample", &dit, 1, 0),
        ("emoji-dit", &dit, 128, 0),
    ] {
        let checkpoint = Checkpoint::open(folder, "diffusion_pytorch_model", None).unwrap();
        let (measured, said) = measure(&folder.join("config.json"), &checkpoint, samples, text);
        let mebibytes = |bytes: f64| bytes / f64::from(1 << 20);
        let (measured, said) = (mebibytes(measured), mebibytes(said));
        assert!(
            (measured / said - 1.0).abs() < 0.1,
            "{what}: {measured:.1} MiB measured, {said:.1} MiB said"
        );
    }
}
