//! Tiny single files and what diffusers makes of them, from `tests/goldens/single_file`.

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

pub(crate) type Tensors = BTreeMap<String, Tensor>;

pub(crate) struct Fixture(Value);

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens")
}

impl Fixture {
    pub(crate) fn open(kind: &str) -> Self {
        let path = goldens().join("single_file").join(format!("{kind}.json"));
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    /// The single file's tensors.
    pub(crate) fn tensors(&self) -> Tensors {
        let mut names = BTreeMap::new();
        flatten("", &self.0["original"], &mut names);
        names.into_iter().enumerate().map(|(n, (name, text))| (name, numbers(n, &text))).collect()
    }

    /// A folder of the same kind of model without weights of the components that the file holds.
    pub(crate) fn write_folder(&self, path: &Path) {
        for (file, content) in self.0["folder"].as_object().unwrap() {
            let file = path.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content.to_string()).unwrap();
        }
        for (component, golden) in
            [("vae", "sd_vae"), ("text_encoder", "clip_l_text"), ("text_encoder_2", "t5_encoder")]
        {
            let listed = self.0["folder"]["model_index.json"].get(component).is_some();
            if listed && self.0["diffusers"].get(component).is_none() {
                std::fs::create_dir_all(path.join(component)).unwrap();
                for entry in std::fs::read_dir(goldens().join(golden)).unwrap() {
                    let entry = entry.unwrap();
                    std::fs::copy(entry.path(), path.join(component).join(entry.file_name()))
                        .unwrap();
                }
            }
        }
    }

    /// Compares the weights of all converted components with diffusers': names, types, shapes and
    /// numbers.
    pub(crate) fn compare(&self, folder: &Path) {
        for (component, tensors) in self.0["diffusers"].as_object().unwrap() {
            let mut want = BTreeMap::new();
            flatten("", tensors, &mut want);
            let stem =
                if component.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
            let path = folder.join(component).join(format!("{stem}.safetensors"));
            let found = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
            let found: BTreeMap<String, String> =
                found.into_iter().map(|(name, tensor)| (name, described(&tensor))).collect();
            for (name, text) in &want {
                assert_eq!(found.get(name), Some(text), "{component}: {name}");
            }
            assert_eq!(found.len(), want.len(), "{component}");
        }
    }
}

pub(crate) fn save(tensors: &Tensors, path: &Path) {
    let tensors: HashMap<&str, Tensor> =
        tensors.iter().map(|(name, t)| (name.as_str(), t.clone())).collect();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

/// Objects within objects as dotted names.
fn flatten(prefix: &str, tree: &Value, names: &mut BTreeMap<String, String>) {
    for (step, value) in tree.as_object().unwrap() {
        let name = if prefix.is_empty() { step.clone() } else { format!("{prefix}.{step}") };
        match value {
            Value::String(text) => _ = names.insert(name, text.clone()),
            tree => flatten(&name, tree, names),
        }
    }
}

/// The n-th tensor of a file, of the type and shape that `text` tells.
fn numbers(n: usize, text: &str) -> Tensor {
    let (dtype, shape) = text.split_once(' ').unwrap();
    let shape: Vec<usize> = shape.split('x').map(|n| n.parse().unwrap()).collect();
    let values = (0..shape.iter().product()).map(|i: usize| ((7919 * n + 31 * i) % 2003) as f32);
    let dtype = if dtype == "F16" { DType::F16 } else { DType::F32 };
    Tensor::from_iter(values, &Device::Cpu)
        .unwrap()
        .reshape(shape)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

/// Type, shape and checksum.
fn described(tensor: &Tensor) -> String {
    let values =
        tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    let checksum: u64 = values.iter().zip(1..).map(|(value, place)| *value as u64 * place).sum();
    let shape: Vec<String> = tensor.dims().iter().map(usize::to_string).collect();
    let dtype = if tensor.dtype() == DType::F16 { "F16" } else { "F32" };
    format!("{dtype} {} {}", shape.join("x"), checksum % (1 << 32))
}
