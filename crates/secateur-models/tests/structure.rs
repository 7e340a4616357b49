//! What a family says of its layers, against those that a call goes through.

mod common;

use candle_core::{DType, Device, Tensor};
use secateur_models::{Checkpoint, Geometry, Operation, denoiser_config};
use secateur_nn::{Context, LayerName, Probe, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

/// What went into a layer.
struct Input {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
    weighted: bool,
}

#[derive(Default)]
struct Inputs(RefCell<BTreeMap<LayerName, Input>>);

impl Probe for Inputs {
    fn linear_input(&self, layer: &LayerName, x: &Tensor, context: &Context<'_>) -> Result<()> {
        let columns = x.dim(candle_core::D::Minus1)?;
        let values = x.flatten_all()?.to_vec1()?;
        let input = Input { rows: values.len() / columns, columns, values, weighted: context.multiplicity.is_some() };
        assert!(self.0.borrow_mut().insert(layer.clone(), input).is_none(), "{layer} is called twice");
        Ok(())
    }
}

/// Runs a fixture's call; `text`: layers that read the text alone, by a part of their names.
fn compare(name: &str, text: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name);
    let given = candle_core::safetensors::load(folder.join("io.safetensors"), &Device::Cpu).unwrap();
    let (samples, _, height, width) = given["x"].dims4().unwrap();
    let tokens = given.get("context").map_or(0, |text| text.dim(1).unwrap());
    let ones = Tensor::ones((samples, tokens), DType::F32, &Device::Cpu).unwrap();
    let inputs = Inputs::default();
    let context = Context { probe: Some(&inputs), ..Context::default() };
    let parameters = Checkpoint::open(&folder, "diffusion_pytorch_model", None).unwrap().load().unwrap();
    parameters.build(common::call(&folder, &given, Some(&ones), context)).unwrap();
    let mut inputs = inputs.0.into_inner();

    let config = denoiser_config(&folder.join("config.json")).unwrap();
    let structure = config.structure(&Geometry { latent: (height, width), text: tokens });
    let mut shared: BTreeMap<LayerName, Vec<f32>> = BTreeMap::new();
    for layer in structure.layers() {
        let shape = parameters.get(&layer.name.weight()).map(Tensor::dims);
        match layer.operation {
            Operation::Linear { rows, inputs: columns, outputs } => {
                assert_eq!(shape, Some(&[outputs, columns][..]), "{}", layer.name);
                let input = inputs.remove(&layer.name).unwrap_or_else(|| panic!("{} is not called", layer.name));
                assert_eq!((input.rows, input.columns), (samples * rows, columns), "{}", layer.name);
                let reads_text = text.iter().any(|part| layer.name.as_str().contains(part));
                assert_eq!(input.weighted, reads_text, "{}", layer.name);
                if let Some(prunable) = &layer.prunable {
                    let first = shared.entry(prunable.input.clone()).or_insert_with(|| input.values.clone());
                    assert!(*first == input.values, "{} does not read what {} reads", layer.name, prunable.input);
                }
            }
            Operation::Convolution { inputs, outputs, kernel, .. } => {
                assert_eq!(shape, Some(&[outputs, inputs, kernel, kernel][..]), "{}", layer.name);
            }
            Operation::Attention { .. } => assert_eq!(shape, None, "{}", layer.name),
        }
    }
    assert!(inputs.is_empty(), "not described: {:?}", inputs.keys());
}

#[test]
fn sd3() {
    compare("sd3_mmdit", &["context_embedder", "attn.add_", "attn.to_add_out", "ff_context"]);
}

#[test]
fn sd35_medium() {
    compare("sd35_medium_mmdit", &["context_embedder", "attn.add_", "attn.to_add_out", "ff_context"]);
}

#[test]
fn dit() {
    compare("dit_transformer", &[]);
}

#[test]
fn pixart() {
    compare("pixart_transformer", &["caption_projection", "attn2.to_k", "attn2.to_v"]);
}

#[test]
fn pixart_sized() {
    compare("pixart_sized_transformer", &["caption_projection", "attn2.to_k", "attn2.to_v"]);
}

#[test]
fn unets() {
    for name in ["sd15_unet", "sd21_unet", "sdxl_unet", "ddpm_unet"] {
        compare(name, &[]);
    }
}

/// The `config.json` of a fixture with one option changed, and what is said of it.
#[test]
fn options_that_are_not_supported_are_named() {
    use serde_json::{Value, json};
    let temporary = tempfile::tempdir().unwrap();
    for (fixture, option, value, words) in [
        ("dit_transformer", "norm_type", json!("ada_norm"), "norm_type \"ada_norm\""),
        ("dit_transformer", "norm_elementwise_affine", json!(true), "norm_elementwise_affine true"),
        ("dit_transformer", "activation_fn", json!("swiglu"), "activation_fn \"swiglu\""),
        ("dit_transformer", "sample_size", json!(1), "sample_size 1 is less than patch_size 2"),
        ("dit_transformer", "num_layers", json!(0), "num_layers must not be 0"),
        ("dit_transformer", "attention_head_dim", json!(15), "30 is not a multiple of 4"),
        ("pixart_transformer", "attention_type", json!("gated"), "attention_type \"gated\""),
        ("pixart_transformer", "double_self_attention", json!(true), "double_self_attention true"),
        ("pixart_transformer", "cross_attention_dim", Value::Null, "cross_attention_dim null"),
        ("pixart_transformer", "cross_attention_dim", json!(24), "cross_attention_dim 24 differs from"),
        ("pixart_transformer", "use_additional_conditions", json!(true), "32 is not a multiple of 3"),
        ("pixart_transformer", "interpolation_scale", json!(0), "interpolation_scale 0"),
    ] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(fixture).join("config.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        config[option] = value;
        let path = temporary.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let error = denoiser_config(&path).unwrap_err().to_string();
        assert!(error.contains(words), "{option}: {error}");
    }
}

#[test]
fn a_transformer_of_before_has_a_family() {
    let temporary = tempfile::tempdir().unwrap();
    for (fixture, class) in [("dit_transformer", "DitConfig"), ("pixart_transformer", "PixartConfig")] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(fixture).join("config.json");
        let text = std::fs::read_to_string(file).unwrap();
        let path = temporary.path().join("config.json");
        let older = text.replace("DiTTransformer2DModel", "Transformer2DModel");
        std::fs::write(&path, older.replace("PixArtTransformer2DModel", "Transformer2DModel")).unwrap();
        assert!(format!("{:?}", denoiser_config(&path).unwrap()).starts_with(class));
    }
}
