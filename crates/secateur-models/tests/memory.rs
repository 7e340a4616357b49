//! What a call is said to take, against what it holds: a counting allocator sees every byte. A process of its own:
//! nothing else may run beside it.

#![expect(unsafe_code, reason = "an allocator that counts what the system's gives")]

use candle_core::{DType, Device, Tensor};
use secateur_models::{Checkpoint, Conditioning, DenoiserConfig, Geometry, MmditConfig, Operation, denoiser_config};
use secateur_nn::{Context, Parameters};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that are held, and the most that were.
static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the pointer came from `System` by `alloc`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that loading and calling held over what was held before, and what was said.
fn measure(config: &Path, checkpoint: &Checkpoint, samples: usize, text: usize) -> (f64, f64) {
    let config = denoiser_config(config).unwrap();
    let [channels, height, width] = config.latent_shape();
    let structure = config.structure(&Geometry { latent: (height, width), text });
    let columns = |names: [&str; 2]| {
        let mut layers =
            structure.layers().filter(|layer| names.iter().any(|name| layer.name.as_str().ends_with(name)));
        layers.find_map(|layer| match layer.operation {
            Operation::Linear { inputs, .. } => Some(inputs),
            _ => None,
        })
    };
    let random = |shape: &[usize]| Tensor::randn(0f32, 1f32, shape, &Device::Cpu).unwrap();
    let conditioning = Conditioning {
        text: columns(["context_embedder", "attn2.to_k"]).map(|width| random(&[samples, text, width])),
        pooled: columns(["text_embedder.linear_1"; 2]).map(|width| random(&[samples, width])),
        guidance: Some(Tensor::full(3.5f32, samples, &Device::Cpu).unwrap()),
        ..Conditioning::default()
    };
    let latents = random(&[samples, channels, height, width]);
    let parameters = checkpoint.tensors().map(|(_, info)| info.shape.iter().product::<usize>() as u64).sum();
    let said = structure.memory(parameters, samples).total() as f64;
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let parameters: Parameters = checkpoint.load().unwrap();
    let model = parameters.build(|scope| config.build(&scope)).unwrap();
    model.forward(&latents, &vec![500.0; samples], &conditioning, &Context::default()).unwrap();
    ((MOST.load(Relaxed) - before) as f64, said)
}

/// A wide, short model with random weights, whose activations are a good part of its memory.
fn wide(folder: &Path) -> PathBuf {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-mmdit/transformer/config.json");
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(bundled).unwrap()).unwrap();
    for (name, value) in
        [("num_layers", 2), ("sample_size", 48), ("pos_embed_max_size", 24), ("num_attention_heads", 12)]
    {
        config[name] = value.into();
    }
    config["caption_projection_dim"] = (12 * 32).into();
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    // The names and shapes that the model asks for are those that it misses.
    let config = MmditConfig::open(&path).unwrap();
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    let structure = config.structure(&Geometry { latent: (48, 48), text: 40 });
    for layer in structure.layers() {
        use Operation::{Attention, Convolution, Linear};
        let (shape, outputs) = match layer.operation {
            Linear { inputs, outputs, .. } => (vec![outputs, inputs], outputs),
            Convolution { inputs, outputs, kernel, .. } => (vec![outputs, inputs, kernel, kernel], outputs),
            Attention { .. } => continue,
        };
        tensors.insert(format!("{}.weight", layer.name), Tensor::randn(0f32, 0.02, shape, &Device::Cpu).unwrap());
        tensors.insert(format!("{}.bias", layer.name), Tensor::zeros(outputs, DType::F32, &Device::Cpu).unwrap());
    }
    for block in 0..2 {
        for norm in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
            let name = format!("transformer_blocks.{block}.attn.{norm}.weight");
            tensors.insert(name, Tensor::ones(32, DType::F32, &Device::Cpu).unwrap());
        }
    }
    let table = Tensor::zeros((1, 24 * 24, 12 * 32), DType::F32, &Device::Cpu).unwrap();
    tensors.insert("pos_embed.pos_embed".into(), table);
    let tensors: std::collections::HashMap<String, Tensor> = tensors.into_iter().collect();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    path
}

#[test]
fn a_call_takes_what_it_is_said_to_take() {
    let folder = tempfile::tempdir().unwrap();
    let wide = wide(folder.path());
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let of = |component: &str| {
        let folder = models.join(component);
        (folder.join("config.json"), Checkpoint::open(&folder, "diffusion_pytorch_model", None).unwrap())
    };
    let (mmdit, mmdit_weights) = of("emoji-mmdit/transformer");
    let (unet, unet_weights) = of("emoji-unet/unet");
    let (flux, flux_weights) = of("../tests/goldens/flux_transformer");
    let wide_weights = Checkpoint::open(folder.path(), "model", None).unwrap();
    for (what, config, checkpoint, samples, text) in [
        ("wide", &wide, &wide_weights, 12, 40),
        ("emoji-mmdit", &mmdit, &mmdit_weights, 16, 33),
        ("flux", &flux, &flux_weights, 2, 600),
        ("emoji-unet, one sample", &unet, &unet_weights, 1, 32),
        ("emoji-unet", &unet, &unet_weights, 24, 32),
    ] {
        let (measured, said) = measure(config, checkpoint, samples, text);
        let mebibytes = |bytes: f64| bytes / f64::from(1 << 20);
        let (measured, said) = (mebibytes(measured), mebibytes(said));
        assert!((measured / said - 1.0).abs() < 0.1, "{what}: {measured:.1} MiB measured, {said:.1} MiB said");
    }
}
