//! Small parts, each by its numbers.

use candle_core::{DType, Device, Tensor};
use secateur_models::{
    ClipImageProcessor, ClipModel, Edits, Made, ModelFolder, Past, Pipeline, Sampling, T5Tokenizer,
};
use secateur_nn::Placement;
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name)
}

/// Of emoji-clip: four layers of width 192 for texts of 32 tokens, six of width 256 for pictures of
/// 64 patches and one token more, hidden layers four times as wide.
#[test]
fn the_memory_of_clip() {
    let memory =
        |pictures, texts| ClipModel::memory(&model("emoji-clip"), pictures, texts).unwrap();
    assert_eq!(memory(3, 5).weights, 4 * 7_035_649);
    // Of texts and pictures the larger; no more than 64 texts are read at a time.
    let (of_text, of_picture) = (4 * 32 * 9 * 192, 4 * 65 * 9 * 256);
    for (pictures, texts, most) in [
        (2, 1, 2 * of_picture),
        (0, 3, 3 * of_text),
        (1, 64, 64 * of_text),
        (1, 1000, 64 * of_text),
    ] {
        assert_eq!(memory(pictures, texts).activations, most, "{pictures} pictures, {texts} texts");
    }
}

/// The decoder of emoji-unet holds the most at the convolution behind its last upsampling, of 64
/// channels of 64 x 64 pixels: its input before and after a norm, and its output.
#[test]
fn the_memory_of_an_autoencoder() {
    let folder = ModelFolder::open(&model("emoji-unet"), None).unwrap();
    let memory = folder.autoencoder_memory(&folder.sampling());
    assert_eq!(memory.activations, 4 * 3 * 64 * 64 * 64);
}

/// The first layer, linear or convolution, that reads what a NaN in a weight spoils. Nothing reads
/// what the last layer makes.
#[test]
fn the_first_layer_of_a_spoiled_input_is_named() {
    let folder = ModelFolder::open(&model("emoji-unet"), None).unwrap();
    let sampling = Sampling { steps: 2, ..folder.sampling() };
    let prompts = ["red apple, noto style emoji".to_owned()];
    let mut pipeline = Pipeline::open(folder).unwrap();
    for (spoiled, named) in [
        ("conv_in", "layer down_blocks.0.resnets.0.conv1: its input holds NaN"),
        ("down_blocks.0.resnets.0.conv1", "layer down_blocks.0.resnets.0.conv2: its input holds"),
        ("time_embedding.linear_2", "layer down_blocks.0.resnets.0.time_emb_proj: its input holds"),
        ("conv_out", "the denoiser's output is not finite"),
    ] {
        let weight = format!("{spoiled}.weight");
        let whole = pipeline.parameter(&weight).unwrap().unwrap();
        let nan = (&whole * f64::NAN).unwrap();
        let with = |tensor: Tensor| Edits {
            weights: [(weight.clone(), tensor.into())].into(),
            ..Edits::default()
        };
        pipeline.apply(&with(nan)).unwrap();
        let error = pipeline.sample(&prompts, 0..1, &sampling, None, &()).unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("denoising step 1"), "{spoiled}: {error}");
        pipeline.apply(&with(whole)).unwrap();
    }
}

/// Black on the left and white on the right, of 4 x 8 pixels.
#[test]
fn the_middle_of_a_picture_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("preprocessor_config.json");
    let see = |edge: u32, crop: u32, scale: usize| {
        let mean_and_std = "\"image_mean\": [0, 0.5, 1], \"image_std\": [1, 0.5, 2]";
        let config = format!("{{\"size\": {edge}, \"crop_size\": {crop}, {mean_and_std}}}");
        std::fs::write(&path, config).unwrap();
        let value = |place: usize| if place / 3 % (8 * scale) < 4 * scale { 0f32 } else { 1.0 };
        let values = (0..4 * scale * 8 * scale * 3).map(value).collect::<Vec<_>>();
        let picture = Tensor::from_vec(values, (1, 4 * scale, 8 * scale, 3), &Device::Cpu).unwrap();
        let seen = ClipImageProcessor::open(&path).unwrap().prepare(&picture).unwrap();
        let side = crop as usize;
        assert_eq!(seen.dims(), [1, 3, side, side]);
        seen.squeeze(0).unwrap().to_vec3::<f32>().unwrap()
    };
    let of_size = see(4, 4, 1);
    assert_eq!(of_size[0], [[0.0, 0.0, 1.0, 1.0]; 4]);
    assert_eq!(of_size[1], [[-1.0, -1.0, 1.0, 1.0]; 4]);
    assert_eq!(of_size[2], [[-0.5, -0.5, 0.0, 0.0]; 4]);
    // With nothing around a picture that is smaller.
    let smaller = see(4, 6, 1);
    assert_eq!(smaller[0][1..5], [[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]; 4]);
    assert_eq!([&smaller[0][0], &smaller[0][5]], [&[0.0; 6]; 2]);
    // Larger ones become as large, but for a little at the edge.
    for row in &see(4, 4, 4)[0] {
        assert!(row[..2].iter().all(|&x| x < 0.1) && row[2..].iter().all(|&x| x > 0.9), "{row:?}");
    }
}

/// Lagrange's polynomials at the next of evenly spread timesteps.
#[test]
fn weights_of_a_forecast() {
    let mut past = Past::default();
    assert!(past.weights(1.0).is_empty());
    let made = |call: usize, timestep: f64| Made { call, timestep, tensors: Vec::new() };
    for (call, timestep, order, weights) in [
        (0, 10.0, 2, &[1.0][..]),
        (1, 7.0, 2, &[2.0, -1.0]),
        // Called twice at a timestep.
        (2, 7.0, 2, &[2.0, -1.0]),
        (3, 4.0, 2, &[3.0, -3.0, 1.0]),
        (4, 1.0, 1, &[2.0, -1.0]),
    ] {
        past.push(made(call, timestep), order);
        let found = past.weights(timestep - 3.0);
        let close = found.iter().zip(weights).all(|(found, want)| (found - want).abs() < 1e-12);
        assert!(found.len() == weights.len() && close, "after call {call}: {found:?}");
        assert_eq!(past.made()[0].call, call);
    }
    assert_eq!(past.weights(1.0), [1.0, 0.0]);
}

/// A vocabulary of a later version: field 100, of each kind that protocol buffers have.
#[test]
fn fields_of_a_vocabulary_that_are_not_known_are_passed_over() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/t5_spiece");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&fixture).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let tokens = || {
        let tokenizer = T5Tokenizer::open(folder.path())?;
        let (ids, _) = tokenizer.encode_batch(&["a red apple".into(), "spider".into()], 16)?;
        Ok::<_, secateur_models::Error>(ids.to_vec2::<u32>()?)
    };
    let before = tokens().unwrap();
    let path = folder.path().join("spiece.model");
    let bytes = std::fs::read(&path).unwrap();
    for (kind, value) in [(0, &[0x85, 0x01][..]), (1, &[7; 8]), (2, &[3, 1, 2, 3]), (5, &[7; 4])] {
        let field = [&[0xa0 | kind, 0x06], value].concat();
        std::fs::write(&path, [&field, &bytes[..], &field].concat()).unwrap();
        assert_eq!(tokens().unwrap(), before, "kind {kind}");
    }
    // Groups have been given up.
    std::fs::write(&path, [&[0xa3, 0x06], &bytes[..]].concat()).unwrap();
    assert!(tokens().is_err());
}

/// What a model computes in rounds its weights; what methods read of it does not.
#[test]
fn parameters_are_read_as_the_checkpoint_has_them() {
    let folder = || ModelFolder::open(&model("emoji-dit"), None).unwrap();
    let exact = Pipeline::open(folder()).unwrap();
    let rounded = folder().at(Placement::new(Device::Cpu, DType::BF16));
    let mut rounded = Pipeline::open(rounded).unwrap();
    let name = "transformer_blocks.0.attn1.to_q.weight";
    let values = |tensor: &Tensor| {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let want = values(&exact.parameter(name).unwrap().unwrap());
    assert_eq!(values(&rounded.parameter(name).unwrap().unwrap()), want);
    let computed_with = |model: &Pipeline| model.parameters().get(name).unwrap().tensor().unwrap();
    assert_ne!(values(&computed_with(&rounded)), want, "is it rounded at all?");
    // An edit is kept as it was given.
    let edited = exact.parameter(name).unwrap().unwrap().affine(1.001, 0.0).unwrap();
    let weights = [(name.to_owned(), edited.clone().into())].into();
    rounded.apply(&Edits { weights, ..Edits::default() }).unwrap();
    assert_eq!(values(&rounded.parameter(name).unwrap().unwrap()), values(&edited));
    assert_eq!(computed_with(&rounded).dtype(), DType::BF16);
    assert!(rounded.parameter("transformer_blocks.0.none").unwrap().is_none());
}
