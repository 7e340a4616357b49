//! What a family says of its layers, against those that a call goes through.

#[path = "common/cases.rs"]
#[macro_use]
mod cases;
mod common;

use candle_core::{DType, Device, Tensor};
use secateur_models::{
    Checkpoint, Geometry, Group, Operation, Pair, Reader, Slice, Structure, denoiser_config,
};
use secateur_nn::{Context, Kind, LayerName, Probe, Result};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// What went into a layer.
struct Input {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
    weighted: bool,
}

/// The inputs of linear layers, and the channels of those of convolutions.
#[derive(Default)]
struct Inputs(RefCell<BTreeMap<LayerName, Input>>, RefCell<BTreeMap<LayerName, usize>>);

impl Probe for Inputs {
    fn linear_input(&self, layer: &LayerName, x: &Tensor, context: &Context<'_>) -> Result<()> {
        let columns = x.dim(candle_core::D::Minus1)?;
        let values = x.flatten_all()?.to_vec1()?;
        let input = Input {
            rows: values.len() / columns,
            columns,
            values,
            weighted: context.multiplicity.is_some(),
        };
        assert!(
            self.0.borrow_mut().insert(layer.clone(), input).is_none(),
            "{layer} is called twice"
        );
        Ok(())
    }

    fn convolution_input(&self, layer: &LayerName, x: &Tensor, _: &Context<'_>) -> Result<()> {
        let twice = self.1.borrow_mut().insert(layer.clone(), x.dim(1)?).is_some();
        assert!(!twice, "{layer} is called twice");
        Ok(())
    }
}

/// Height and width of the latents of a fixture's call; FLUX's are given as tokens with their
/// places.
fn latents(given: &HashMap<String, Tensor>) -> (usize, usize) {
    let Some(places) = given.get("img_ids") else {
        let (_, _, height, width) = given["x"].dims4().unwrap();
        return (height, width);
    };
    let last = places.max(0).unwrap().to_vec1::<f32>().unwrap();
    (2 * (last[1] as usize + 1), 2 * (last[2] as usize + 1))
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs a fixture's call; `text`: layers that read the text alone, by a part of their names.
fn compare(name: &str, text: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens").join(name);
    let given =
        candle_core::safetensors::load(folder.join("io.safetensors"), &Device::Cpu).unwrap();
    let samples = given["x"].dim(0).unwrap();
    let (height, width) = latents(&given);
    let tokens = given.get("context").map_or(0, |text| text.dim(1).unwrap());
    let ones = Tensor::ones((samples, tokens), DType::F32, &Device::Cpu).unwrap();
    let inputs = Inputs::default();
    let context = Context { probe: Some(&inputs), ..Context::default() };
    let parameters =
        Checkpoint::open(&folder, "diffusion_pytorch_model", None).unwrap().load().unwrap();
    parameters.build(common::call(&folder, &given, Some(&ones), context)).unwrap();
    let (mut inputs, mut channels) = (inputs.0.into_inner(), inputs.1.into_inner());

    let config = denoiser_config(&folder.join("config.json")).unwrap();
    let structure = config.structure(&Geometry { latent: (height, width), text: tokens }).unwrap();
    let mut shared: BTreeMap<LayerName, Vec<f32>> = BTreeMap::new();
    for layer in structure.layers() {
        let shape = parameters.get(&layer.name.weight()).map(|weight| weight.shape().dims());
        match layer.operation {
            Operation::Linear { rows, inputs: columns, outputs } => {
                assert_eq!(shape, Some(&[outputs, columns][..]), "{}", layer.name);
                let input = inputs
                    .remove(&layer.name)
                    .unwrap_or_else(|| panic!("{} is not called", layer.name));
                assert_eq!(
                    (input.rows, input.columns),
                    (samples * rows, columns),
                    "{}",
                    layer.name
                );
                let reads_text = text.iter().any(|part| layer.name.as_str().contains(part));
                assert_eq!(input.weighted, reads_text, "{}", layer.name);
                if let Some(prunable) = &layer.prunable {
                    let first = shared
                        .entry(prunable.input.clone())
                        .or_insert_with(|| input.values.clone());
                    assert!(
                        *first == input.values,
                        "{} does not read what {} reads",
                        layer.name,
                        prunable.input
                    );
                }
            }
            Operation::Convolution { inputs, outputs, kernel, .. } => {
                assert_eq!(shape, Some(&[outputs, inputs, kernel, kernel][..]), "{}", layer.name);
                assert_eq!(channels.remove(&layer.name), Some(inputs), "{}", layer.name);
            }
            Operation::Attention { .. } => assert_eq!(shape, None, "{}", layer.name),
        }
    }
    assert!(inputs.is_empty(), "not described: {:?}", inputs.keys());
    assert!(channels.is_empty(), "not described: {:?}", channels.keys());
}

#[test]
fn flux() {
    let single =
        ["single_transformer_blocks.0.attn", "single_transformer_blocks.1.attn", "proj_mlp"];
    let joined = ["single_transformer_blocks.0.proj_out", "single_transformer_blocks.1.proj_out"];
    let text = ["context_embedder", "attn.add_", "attn.to_add_out", "ff_context"];
    compare("flux_transformer", &[&text[..], &single, &joined].concat());
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
        (
            "sd15_unet",
            "class_embed_type",
            json!("timestep"),
            "class_embed_type \"timestep\" is not supported",
        ),
        (
            "sd15_unet",
            "addition_embed_type",
            json!("text"),
            "addition_embed_type \"text\" is not supported",
        ),
        ("sd15_unet", "addition_embed_type", json!("text_time"), "needs addition_time_embed_dim"),
        ("sd15_unet", "encoder_hid_dim", json!(32), "encoder_hid_dim 32"),
        (
            "sdxl_unet",
            "projection_class_embeddings_input_dim",
            json!(48),
            "48 does not hold 6 times addition",
        ),
        (
            "sdxl_unet",
            "addition_time_embed_dim",
            json!(0),
            "addition_time_embed_dim 0 beside the pooled text",
        ),
        ("sd15_unet", "down_block_types", json!(["DownBlock2D"]), "differ in length"),
        ("sd15_unet", "mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn"), "mid_block_type"),
        ("sd15_unet", "cross_attention_dim", Value::Null, "cross_attention_dim is missing"),
        ("sd15_unet", "attention_head_dim", json!(5), "do not divide into 5 heads"),
        ("sd15_unet", "norm_num_groups", json!(0), "do not divide into 0 groups"),
        ("sd15_unet", "in_channels", json!("four"), "invalid type"),
        ("sd3_mmdit", "qk_norm", json!("layer_norm"), "qk_norm \"layer_norm\" is not supported"),
        ("sd3_mmdit", "caption_projection_dim", json!(31), "caption_projection_dim 31 differs"),
        ("sd3_mmdit", "patch_size", json!(0), "sizes must be positive"),
        ("dit_transformer", "norm_type", json!("ada_norm"), "norm_type \"ada_norm\""),
        ("dit_transformer", "norm_elementwise_affine", json!(true), "norm_elementwise_affine true"),
        ("dit_transformer", "activation_fn", json!("swiglu"), "activation_fn \"swiglu\""),
        ("dit_transformer", "sample_size", json!(1), "sample_size 1 is less than patch_size 2"),
        ("dit_transformer", "num_layers", json!(0), "num_layers must not be 0"),
        ("dit_transformer", "attention_head_dim", json!(15), "30 is not a multiple of 4"),
        ("pixart_transformer", "attention_type", json!("gated"), "attention_type \"gated\""),
        ("pixart_transformer", "double_self_attention", json!(true), "double_self_attention true"),
        ("pixart_transformer", "cross_attention_dim", Value::Null, "cross_attention_dim null"),
        (
            "pixart_transformer",
            "cross_attention_dim",
            json!(24),
            "cross_attention_dim 24 differs from",
        ),
        (
            "pixart_transformer",
            "use_additional_conditions",
            json!(true),
            "32 is not a multiple of 3",
        ),
        ("pixart_transformer", "interpolation_scale", json!(0), "interpolation_scale 0"),
    ] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/goldens")
            .join(fixture)
            .join("config.json");
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
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
    for (fixture, class) in
        [("dit_transformer", "DitConfig"), ("pixart_transformer", "PixartConfig")]
    {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/goldens")
            .join(fixture)
            .join("config.json");
        let text = std::fs::read_to_string(file).unwrap();
        let path = temporary.path().join("config.json");
        let older = text.replace("DiTTransformer2DModel", "Transformer2DModel");
        std::fs::write(&path, older.replace("PixArtTransformer2DModel", "Transformer2DModel"))
            .unwrap();
        assert!(format!("{:?}", denoiser_config(&path).unwrap()).starts_with(class));
    }
}

const FIXTURES: [&str; 10] = [
    "sd15_unet",
    "sd21_unet",
    "sdxl_unet",
    "ddpm_unet",
    "sd3_mmdit",
    "sd35_medium_mmdit",
    "flux_transformer",
    "dit_transformer",
    "pixart_transformer",
    "pixart_sized_transformer",
];

/// Heads and neurons fit the weights that they are parts of, and every prunable layer is a part of
/// some.
#[test]
fn heads_and_neurons_fit_their_weights() {
    for name in FIXTURES {
        let folder = project().join("tests/goldens").join(name);
        let parameters = Checkpoint::open(&folder, "diffusion_pytorch_model", None)
            .unwrap()
            .placeholders()
            .unwrap();
        let config = denoiser_config(&folder.join("config.json")).unwrap();
        let structure = config.structure(&Geometry { latent: (16, 16), text: 5 }).unwrap();
        let mut prunable: BTreeSet<LayerName> = structure
            .layers()
            .filter(|layer| layer.prunable.is_some())
            .map(|layer| layer.name.clone())
            .collect();
        // Rows or columns of each layer that are taken.
        let mut taken: BTreeMap<(LayerName, usize), usize> = BTreeMap::new();
        let mut take = |slice: &Slice, dimension: usize, count: usize| {
            prunable.remove(&slice.layer);
            let weight = parameters
                .get(&slice.layer.weight())
                .unwrap_or_else(|| panic!("no {}", slice.layer));
            assert!(
                slice.start + count <= weight.shape().dims()[dimension],
                "{name}, {}",
                slice.layer
            );
            *taken.entry((slice.layer.clone(), dimension)).or_default() += count;
        };
        for block in &structure.blocks {
            for heads in &block.heads {
                assert_eq!(heads.query_key, heads.value);
                let width = heads.count * heads.value;
                for stream in &heads.streams {
                    [&stream.query, &stream.key, &stream.value]
                        .iter()
                        .for_each(|slice| take(slice, 0, width));
                    stream.output.iter().for_each(|slice| take(slice, 1, width));
                }
            }
            for neurons in &block.neurons {
                neurons.up.iter().for_each(|slice| take(slice, 0, neurons.count));
                take(&neurons.down, 1, neurons.count);
            }
            let pairs: Vec<Pair> = block
                .groups()
                .filter_map(|group| match group {
                    Group::Dimensions(dimensions) => Some(dimensions.pair),
                    _ => None,
                })
                .collect();
            let of = |pair: Pair| pairs.iter().filter(|found| **found == pair).count();
            assert_eq!(of(Pair::ValueOutput), block.heads.len(), "{name}");
            let qk_norm = ["flux_transformer", "sd35_medium_mmdit"].contains(&name);
            assert_eq!(of(Pair::QueryKey), if qk_norm { 0 } else { block.heads.len() }, "{name}");
        }
        for ((layer, dimension), count) in taken {
            let weight = parameters.get(&layer.weight()).unwrap();
            assert_eq!(
                count,
                weight.shape().dims()[dimension],
                "{name}, {layer}: some of it is in no group, or in two"
            );
        }
        assert!(prunable.is_empty(), "{name}: in no group: {prunable:?}");
    }
}

fn full_size(name: &str) -> Structure {
    let folder = project().join("tools/full_size").join(name);
    let component = ["unet", "transformer"].map(|component| folder.join(component));
    let component = component.iter().find(|path| path.exists()).unwrap();
    let config = denoiser_config(&component.join("config.json")).unwrap();
    let [_, height, width] = config.latent_shape();
    config.structure(&Geometry { latent: (height, width), text: 77 }).unwrap()
}

/// The numbers of parameters that diffusers counts, and multiply-accumulates (without attention
/// products where the second is `false`) as published, which the way of counting changes by a
/// thousandth.
#[test]
fn published_sizes() {
    for (name, parameters, macs) in [
        ("sd-1.5", 859_520_964, Some((338.8e9, false))),
        ("sd-2.1", 865_910_724, None),
        ("sdxl", 2_567_463_684, Some((2.99e12, false))),
        ("sd3-medium", 2_028_328_000, None),
        ("sd3.5-medium", 2_243_171_520, None),
        ("sd3.5-large", 8_056_627_520, None),
        ("flux.1-dev", 11_901_408_320, None),
        ("dit-xl-2-256", 749_826_464, Some((118.6e9, true))),
        ("pixart-alpha-1024", 611_349_152, None),
    ] {
        let folder = project().join("tools/full_size").join(name);
        let component = ["unet", "transformer"].map(|component| folder.join(component));
        let component = component.iter().find(|path| path.exists()).unwrap();
        let wanted = denoiser_config(&component.join("config.json"))
            .unwrap()
            .parameters(&Default::default())
            .unwrap();
        let counted: usize = wanted
            .values()
            .filter(|wanted| wanted.kind != Kind::Constant)
            .map(|wanted| wanted.shape.iter().product::<usize>())
            .sum();
        assert_eq!(counted, parameters, "{name}");
        if let Some((published, with_attention)) = macs {
            let structure = full_size(name);
            let own =
                if with_attention { structure.macs() } else { structure.macs_without_attention() }
                    as f64;
            assert!((own / published - 1.0).abs() < 2e-3, "{name}: {own} multiply-accumulates");
        }
    }
}

/// DiP-GO's units: 9 blocks a step in SD1.5, 24 branches there and 18 in SDXL; 28 blocks in DiT-XL.
#[test]
fn units_that_can_be_skipped() {
    let count = |name: &str| {
        let structure = full_size(name);
        (structure.units.len(), structure.branches.len())
    };
    assert_eq!(
        [count("sd-1.5"), count("sdxl"), count("dit-xl-2-256")],
        [(9, 24), (7, 18), (28, 28)]
    );

    let structure = full_size("sd-1.5");
    let share = |unit| 100.0 * structure.unit_macs(unit) as f64 / structure.macs() as f64;
    let total: f64 = structure.units.iter().map(share).sum();
    assert!((99.0..100.0).contains(&total), "{total} % of the multiplications are in units");
    let readers: Vec<Vec<Reader>> = structure
        .readers(&structure.units)
        .into_iter()
        .map(|readers| readers.into_iter().collect())
        .collect();
    // Down blocks 0-3 are 0-3, the middle is 4, up blocks 0-3 are 5-8.
    let units = |some: &[usize]| some.iter().map(|&unit| Reader::Unit(unit)).collect::<Vec<_>>();
    let expected =
        [&[1, 7, 8][..], &[2, 6, 7], &[3, 5, 6], &[4, 5], &[5], &[6], &[7], &[8]].map(units);
    assert_eq!(readers[..8], expected);
    assert_eq!(readers[8], [Reader::Output]);

    // Branches: eleven down, with a downsampler behind every two residual blocks but the last; the
    // middle; twelve up.
    let readers = structure.readers(&structure.branches);
    let names: Vec<&str> = structure.branches.iter().map(|branch| branch.name.as_str()).collect();
    assert_eq!(
        [names[2], names[11], names[23]],
        ["down_blocks.0.downsamplers.0", "mid_block", "up_blocks.3.resnets.2"]
    );
    for (down, readers) in readers.iter().enumerate().take(11) {
        // The last one in is the first one out; the middle reads the last one only.
        let expected = BTreeSet::from([Reader::Unit(down + 1), Reader::Unit(22 - down)]);
        assert_eq!(*readers, expected, "{}", names[down]);
    }
    for (up, readers) in readers.iter().enumerate().skip(11) {
        let next = if up == 23 { Reader::Output } else { Reader::Unit(up + 1) };
        assert_eq!(*readers, BTreeSet::from([next]), "{}", names[up]);
    }
}

/// The most numbers are alive in the second attention down of the level that is the largest of
/// those with attention: fifteen times as many as there are pixels and channels, and what is kept
/// for the way up.
#[test]
fn activations_of_unets() {
    let kept = 320 * 64 * 64;
    assert_eq!(full_size("sd-1.5").activations, (3 + 8 + 4 + 2) * kept);
    let kept = 320 * 96 * 96;
    assert_eq!(full_size("sd-2.1").activations, (3 + 8 + 4 + 2) * kept);
    // SDXL has none at the first level.
    let kept = 3 * 320 * 128 * 128 + (320 + 640) * 64 * 64;
    assert_eq!(full_size("sdxl").activations, (3 + 8 + 4) * 640 * 64 * 64 + kept);
}

/// Layers that see the text, of MMDiT and of PixArt.
const MMDIT: [&str; 4] = ["context_embedder", "attn.add_", "attn.to_add_out", "ff_context"];
const PIXART: [&str; 3] = ["caption_projection", "attn2.to_k", "attn2.to_v"];

tests! {
    compare {
        sd3("sd3_mmdit", &MMDIT);
        sd35_medium("sd35_medium_mmdit", &MMDIT);
        dit("dit_transformer", &[]);
        pixart("pixart_transformer", &PIXART);
        pixart_sized("pixart_sized_transformer", &PIXART);
    }
}
