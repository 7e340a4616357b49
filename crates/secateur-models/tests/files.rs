//! Weight files as people have them: sharded, of variants, of other types; read, and written back
//! the same way.

#![cfg(unix)]

use candle_core::{DType, Device, Tensor};
use secateur_models::{
    Checkpoint, Cuts, Edits, Group, ModelFolder, OutputFolder, OutputOptions, Pipeline,
};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const STEM: &str = "diffusion_pytorch_model";

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-mmdit").canonicalize().unwrap()
}

fn weights() -> HashMap<String, Tensor> {
    let file = bundled().join("transformer").join(format!("{STEM}.safetensors"));
    candle_core::safetensors::load(file, &Device::Cpu).unwrap()
}

/// The bundled model with links to all but the weights of the transformer, which `write` makes.
fn model(folder: &Path, write: impl FnOnce(&Path)) -> PathBuf {
    let target = folder.join("model");
    std::fs::create_dir_all(target.join("transformer")).unwrap();
    for entry in std::fs::read_dir(bundled()).unwrap() {
        let name = entry.unwrap().file_name();
        if name != "transformer" {
            std::os::unix::fs::symlink(bundled().join(&name), target.join(&name)).unwrap();
        }
    }
    std::fs::copy(
        bundled().join("transformer/config.json"),
        target.join("transformer/config.json"),
    )
    .unwrap();
    write(&target.join("transformer"));
    target
}

/// Two shards and their index.
fn shards(folder: &Path, variant: &str, dtype: DType) {
    let (mut first, mut second, mut map) = (HashMap::new(), HashMap::new(), BTreeMap::new());
    let name = |n: usize| format!("{STEM}{variant}-0000{n}-of-00002.safetensors");
    for (i, (key, tensor)) in weights().into_iter().enumerate() {
        let shard = if i % 3 == 0 { &mut first } else { &mut second };
        map.insert(key.clone(), name(if i % 3 == 0 { 1 } else { 2 }));
        shard.insert(key, tensor.to_dtype(dtype).unwrap());
    }
    candle_core::safetensors::save(&first, folder.join(name(1))).unwrap();
    candle_core::safetensors::save(&second, folder.join(name(2))).unwrap();
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    let path = folder.join(format!("{STEM}.safetensors.index{variant}.json"));
    std::fs::write(path, index.to_string()).unwrap();
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// One new weight.
fn edits(name: &str, weight: Tensor) -> Edits {
    Edits { weights: BTreeMap::from([(name.to_owned(), weight.into())]), ..Edits::default() }
}

/// Writes the model with one weight replaced by zeros, and opens what was written.
fn write_back(model: &Path, variant: Option<&str>, out: &Path) -> ModelFolder {
    let folder = ModelFolder::open(model, variant).unwrap();
    let name = "transformer_blocks.4.ff.net.2.weight";
    let zeros = folder.checkpoint().read(name).unwrap().zeros_like().unwrap();
    let output = OutputFolder::create(out, OutputOptions::default(), &[model]).unwrap();
    folder.write(&output.path(), &edits(name, zeros), &()).unwrap();
    output.finish().unwrap();
    let written = ModelFolder::open(out, variant).unwrap();
    for (key, info) in folder.checkpoint().tensors() {
        assert_eq!(
            written.checkpoint().tensor(key).map(|t| (t.dtype, &t.shape)),
            Some((info.dtype, &info.shape))
        );
        let (before, after) =
            (folder.checkpoint().read(key).unwrap(), written.checkpoint().read(key).unwrap());
        if key == name {
            assert!(values(&after).iter().all(|w| *w == 0.0));
        } else {
            assert_eq!(values(&before), values(&after), "{key}");
        }
    }
    Pipeline::open(written.clone()).unwrap();
    written
}

#[test]
fn shards_are_read_and_written() {
    let temporary = tempfile::tempdir().unwrap();
    let source = model(temporary.path(), |folder| shards(folder, "", DType::BF16));
    let written = write_back(&source, None, &temporary.path().join("out"));
    let mut files: Vec<String> = written
        .checkpoint()
        .paths()
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    files.sort();
    let names = [1, 2].map(|n| format!("{STEM}-0000{n}-of-00002.safetensors"));
    assert_eq!(files, names);
    let index =
        temporary.path().join("out/transformer").join(format!("{STEM}.safetensors.index.json"));
    let index: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(index).unwrap()).unwrap();
    let bytes: usize = weights().values().map(|tensor| 2 * tensor.elem_count()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes, "it was wrong before");
}

#[test]
fn types_are_kept() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let temporary = tempfile::tempdir().unwrap();
        let source = model(temporary.path(), |folder| {
            let tensors: HashMap<_, _> = weights()
                .into_iter()
                .map(|(key, tensor)| (key, tensor.to_dtype(dtype).unwrap()))
                .collect();
            candle_core::safetensors::save(&tensors, folder.join(format!("{STEM}.safetensors")))
                .unwrap();
        });
        write_back(&source, None, &temporary.path().join("out"));
    }
}

#[test]
fn variants_are_chosen() {
    let temporary = tempfile::tempdir().unwrap();
    let source = model(temporary.path(), |folder| shards(folder, ".fp16", DType::F16));
    // The only variant there is needs no name; an unknown one is an error that lists what there is.
    ModelFolder::open(&source, None).unwrap();
    let error = ModelFolder::open(&source, Some("ema")).unwrap_err().to_string();
    assert!(error.contains("\"ema\"") && error.contains("fp16"), "{error}");

    shards(&source.join("transformer"), "", DType::F32);
    let plain = ModelFolder::open(&source, None).unwrap();
    let half = ModelFolder::open(&source, Some("fp16")).unwrap();
    assert!(half.checkpoint().bytes() < plain.checkpoint().bytes());

    // A saved model holds the variant that was opened alone: the other would still be the model as
    // it was.
    std::fs::write(source.join("transformer/diffusion_pytorch_model.bin"), "a pickle").unwrap();
    let out = temporary.path().join("out");
    let output = OutputFolder::create(&out, OutputOptions::default(), &[&source]).unwrap();
    plain.write(&output.path(), &Edits::default(), &()).unwrap();
    output.finish().unwrap();
    let mut names: Vec<String> = std::fs::read_dir(out.join("transformer"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let shard = |n: usize| format!("{STEM}-0000{n}-of-00002.safetensors");
    assert_eq!(
        names,
        ["config.json".into(), shard(1), shard(2), format!("{STEM}.safetensors.index.json")]
    );
}

#[test]
fn an_index_that_lies_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let source = model(temporary.path(), |folder| shards(folder, "", DType::F16));
    let folder = source.join("transformer");
    std::fs::remove_file(folder.join(format!("{STEM}-00002-of-00002.safetensors"))).unwrap();
    let error = ModelFolder::open(&source, None).unwrap_err().to_string();
    assert!(error.contains("00002-of-00002"), "{error}");
    let index = serde_json::json!({"weight_map": {"no.such.tensor":
        format!("{STEM}-00001-of-00002.safetensors")}});
    std::fs::write(folder.join(format!("{STEM}.safetensors.index.json")), index.to_string())
        .unwrap();
    let error = Checkpoint::open(&folder, STEM, None).unwrap_err().to_string();
    assert!(error.contains("no.such.tensor"), "{error}");
}

#[test]
fn a_weight_that_does_not_fit_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = ModelFolder::open(&bundled(), None).unwrap();
    let wrong = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
    for (name, words) in
        [("transformer_blocks.0.attn.to_q.weight", "[2, 2]"), ("no.such.weight", "no.such.weight")]
    {
        let output =
            OutputFolder::create(&temporary.path().join("out"), OutputOptions::default(), &[])
                .unwrap();
        let error =
            folder.write(&output.path(), &edits(name, wrong.clone()), &()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        drop(output);
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
    }
}

/// A checkpoint whose one tensor holds that value, in a file of that name.
fn write_value(folder: &Path, name: &str, value: f32) {
    let tensor = Tensor::new(&[value], &Device::Cpu).unwrap();
    candle_core::safetensors::save(&HashMap::from([("a".to_owned(), tensor)]), folder.join(name))
        .unwrap();
}

fn read_value(folder: &Path, stem: &str, variant: Option<&str>) -> f32 {
    let checkpoint = Checkpoint::open(folder, stem, variant).unwrap();
    checkpoint.read("a").unwrap().to_vec1::<f32>().unwrap()[0]
}

/// As transformers and diffusers choose.
#[test]
fn a_single_file_beside_shards() {
    for (stem, expected) in [("model", 1.0), ("diffusion_pytorch_model", 3.0)] {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let shard = format!("{stem}-00001-of-00001.safetensors");
        write_value(folder, &format!("{stem}.safetensors"), 1.0);
        write_value(folder, &shard, 3.0);
        let index =
            format!(r#"{{"metadata": {{"total_size": 4}}, "weight_map": {{"a": "{shard}"}}}}"#);
        std::fs::write(folder.join(format!("{stem}.safetensors.index.json")), index).unwrap();
        assert_eq!(read_value(folder, stem, None), expected, "{stem}");
        std::fs::remove_file(folder.join(format!("{stem}.safetensors"))).unwrap();
        assert_eq!(read_value(folder, stem, None), 3.0, "{stem}");
    }
}

#[test]
fn an_index_of_either_spelling() {
    for index in ["model.safetensors.index.fp16.json", "model.safetensors.fp16.index.json"] {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        write_value(folder, "model-00001-of-00001.fp16.safetensors", 2.0);
        let map = r#"{"weight_map": {"a": "model-00001-of-00001.fp16.safetensors"}}"#;
        std::fs::write(folder.join(index), map).unwrap();
        assert_eq!(read_value(folder, "model", Some("fp16")), 2.0, "{index}");
        assert_eq!(read_value(folder, "model", None), 2.0, "{index}");
        let error = Checkpoint::open(folder, "model", Some("bf16")).unwrap_err().to_string();
        assert!(error.contains("variants found: fp16"), "{error}");
    }
}

#[test]
fn a_pointer_of_git_lfs_is_called_so() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 335000000\n";
    for name in ["model.safetensors", "config.json"] {
        std::fs::write(folder.join(name), pointer).unwrap();
    }
    let weights = Checkpoint::open(folder, "model", None).unwrap_err().to_string();
    let config =
        secateur_models::denoiser_config(&folder.join("config.json")).unwrap_err().to_string();
    for (error, name) in [(weights, "model.safetensors"), (config, "config.json")] {
        assert!(error.contains(name) && error.contains("git lfs pull"), "{error}");
    }
}

/// Files that get shorter while they are used give an error, and no model.
#[test]
fn a_weight_file_that_is_cut_during_a_run() {
    let temporary = tempfile::tempdir().unwrap();
    let (model, out) = (temporary.path().join("model"), temporary.path().join("out"));
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(bundled()).unwrap() {
        let entry = entry.unwrap();
        let target = model.join(entry.file_name());
        if entry.file_name() != "transformer" {
            std::os::unix::fs::symlink(entry.path(), target).unwrap();
            continue;
        }
        std::fs::create_dir(&target).unwrap();
        for file in std::fs::read_dir(entry.path()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), target.join(file.file_name())).unwrap();
        }
    }
    let folder = ModelFolder::open(&model, None).unwrap();
    let weights = model.join("transformer").join(format!("{STEM}.safetensors"));
    let bytes = std::fs::metadata(&weights).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(bytes - 1000).unwrap();
    let output = OutputFolder::create(&out, OutputOptions::default(), &[&model]).unwrap();
    let error = folder.write(&output.path(), &Edits::default(), &()).unwrap_err().to_string();
    assert!(
        error.contains("safetensors: was cut short while it was read: 1000 bytes lack"),
        "{error}"
    );
    drop(output);
    assert!(!out.exists());
}

#[test]
fn a_file_of_another_length_than_its_header_promises() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    write_value(folder, "model.safetensors", 2.0);
    let path = folder.join("model.safetensors");
    let bytes = std::fs::metadata(&path).unwrap().len();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    for (length, state) in
        [(bytes - 1, "cut short"), (bytes + 1, "oversized"), (bytes - 4, "cut short")]
    {
        file.set_len(length).unwrap();
        let error = Checkpoint::open(folder, "model", None).unwrap_err().to_string();
        let told =
            format!("model.safetensors: {state}: {length} bytes, its header promises {bytes}");
        assert!(error.ends_with(&told), "{error}");
    }
    file.set_len(bytes).unwrap();
    Checkpoint::open(folder, "model", None).unwrap();
}

/// Some neurons of a block go, and come back as zeros: the rest is where it was.
#[test]
fn a_smaller_model_gets_its_shapes_back() {
    let temporary = tempfile::tempdir().unwrap();
    let (small, dense) = (temporary.path().join("small"), temporary.path().join("dense"));
    let folder = ModelFolder::open(&bundled(), None).unwrap();
    let structure = folder.structure(&folder.sampling());
    let group = structure.groups().find(|group| matches!(group, Group::Neurons(_))).unwrap();
    let cuts = Cuts::new(group.parts(&[0, 5]));
    let mut edits = Edits::default();
    edits.removals.remove(group.name(), group.count(), &[0, 5]);
    for name in cuts.parameters() {
        let weight = folder.checkpoint().read(&name).unwrap().to_dtype(DType::F32).unwrap();
        edits.weights.insert(name.clone(), cuts.take_out(&name, &weight).unwrap().into());
    }
    std::fs::create_dir(&small).unwrap();
    folder.write(&small, &edits, &()).unwrap();
    std::fs::create_dir(&dense).unwrap();
    let restored = ModelFolder::open(&small, None).unwrap().densify(&dense, &()).unwrap();
    // Rows of the first linear and its bias, columns of the second.
    assert_eq!((restored, edits.weights.len()), (3, 3));
    let (dense, count) = (ModelFolder::open(&dense, None).unwrap(), group.count());
    for (name, info) in folder.checkpoint().tensors() {
        let [before, after] =
            [&folder, &dense].map(|folder| folder.checkpoint().read(name).unwrap());
        assert_eq!(before.dims(), after.dims(), "{name}");
        let columns = info.shape.last().copied().unwrap_or(1);
        let gone = |place: usize| match edits.weights.contains_key(name) {
            true if info.shape[0] == count => [0, 5].contains(&(place / (info.elements() / count))),
            true => [0, 5].contains(&(place % columns)),
            false => false,
        };
        let want = values(&before)
            .into_iter()
            .enumerate()
            .map(|(place, x)| if gone(place) { 0.0 } else { x });
        assert!(want.eq(values(&after)), "{name}");
    }
}
