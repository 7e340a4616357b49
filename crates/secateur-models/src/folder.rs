//! A model folder in the diffusers layout: what it holds, without loading weights.

use crate::checkpoint::{Checkpoint, variants};
use crate::error::{Error, Result, read_json};
use crate::family::DenoiserConfig;
use crate::mmdit::MmditConfig;
use crate::pipeline::Sampling;
use crate::structure::{Geometry, Memory, Structure};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How a model wants to be sampled.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Generation {
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale; 1 or less switches guidance off.
    pub guidance: f64,
    /// Text tokens that stand for T5's, zero where there is no T5.
    pub max_sequence_length: usize,
}

impl Default for Generation {
    /// The defaults of diffusers' `StableDiffusion3Pipeline`.
    fn default() -> Self {
        Self { steps: 28, guidance: 7.0, max_sequence_length: 256 }
    }
}

impl Generation {
    /// This, with seed 0 and eight images at a time.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        Sampling {
            steps: self.steps,
            guidance: self.guidance,
            max_sequence_length: self.max_sequence_length,
            negative_prompt: String::new(),
            seed: 0,
            batch: 8,
        }
    }
}

/// Prompt lists that come with a model, relative to its folder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Prompts {
    /// To calibrate with.
    pub calibration: PathBuf,
    /// Never seen in training or calibration.
    pub held_out: PathBuf,
}

/// `secateur.json`: what a model says of itself beyond the diffusers layout. Keys that are not known are left alone: a
/// saved model gets a copy of the file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// Version of this format.
    pub format_version: u32,
    /// How to sample.
    pub generation: Generation,
    /// Prompt lists.
    pub prompts: Option<Prompts>,
    /// A CLIP folder that scores this model's domain, relative to the model folder.
    pub clip: Option<PathBuf>,
}

/// The newest version of `secateur.json` that is understood.
const FORMAT_VERSION: u32 = 1;

/// A model folder.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    path: PathBuf,
    variant: Option<String>,
    manifest: Manifest,
    denoiser: MmditConfig,
    text_tokens: usize,
    checkpoint: Checkpoint,
}

/// The pipeline class that is supported, and its components.
const PIPELINE: &str = "StableDiffusion3Pipeline";
const COMPONENTS: [(&str, &str); 7] = [
    ("transformer", "SD3Transformer2DModel"),
    ("vae", "AutoencoderKL"),
    ("scheduler", "FlowMatchEulerDiscreteScheduler"),
    ("text_encoder", "CLIPTextModelWithProjection"),
    ("text_encoder_2", "CLIPTextModelWithProjection"),
    ("tokenizer", "CLIPTokenizer"),
    ("tokenizer_2", "CLIPTokenizer"),
];

/// Name of the weight files of diffusers' own components.
const STEM: &str = "diffusion_pytorch_model";

impl ModelFolder {
    /// Opens a folder: reads configurations and the headers of the denoiser's weights.
    ///
    /// # Errors
    /// If it is not a diffusers folder, misses a component, is of a class that is not supported, or is damaged.
    pub fn open(path: &Path, variant: Option<&str>) -> Result<Self> {
        let index_path = path.join("model_index.json");
        if !index_path.is_file() {
            let problem = "not a model folder in the diffusers layout: no model_index.json";
            return Err(Error::invalid(path, problem));
        }
        let index: Map<String, Value> = read_json(&index_path)?;
        let class = index.get("_class_name").and_then(Value::as_str).unwrap_or("(none)");
        if class != PIPELINE {
            let problem = format!("_class_name {class:?} is not supported; supported: {PIPELINE}");
            return Err(Error::invalid(&index_path, problem));
        }
        for (component, expected) in COMPONENTS {
            let found = index.get(component).and_then(|v| v.get(1)).and_then(Value::as_str);
            let found = found.map(|class| class.strip_suffix("Fast").unwrap_or(class));
            if found != Some(expected) {
                let found = found.unwrap_or("nothing");
                let problem = format!("component {component} is {found}; {expected} is supported");
                return Err(Error::invalid(&index_path, problem));
            }
            if !path.join(component).is_dir() {
                let problem = format!("component {component} is listed in model_index.json, and its folder is missing");
                return Err(Error::invalid(path, problem));
            }
        }
        if let Some(class) = index.get("text_encoder_3").and_then(|v| v.get(1)).and_then(Value::as_str) {
            let problem = format!(
                "text_encoder_3 is {class}, which is not supported; \
                 SD3 also works without it: set text_encoder_3 and tokenizer_3 to [null, null]"
            );
            return Err(Error::invalid(&index_path, problem));
        }
        let manifest_path = path.join("secateur.json");
        let manifest: Manifest = if manifest_path.is_file() { read_json(&manifest_path)? } else { Manifest::default() };
        if manifest.format_version > FORMAT_VERSION {
            let version = manifest.format_version;
            let problem = format!("format_version {version} is newer than this secateur; update it");
            return Err(Error::invalid(manifest_path, problem));
        }
        if manifest.generation.steps == 0 {
            return Err(Error::invalid(manifest_path, "generation.steps must be at least 1"));
        }
        if let Some(variant) = variant {
            let stem = |component: &str| if component.starts_with("text") { "model" } else { STEM };
            let mut found = BTreeSet::new();
            for component in ["transformer", "text_encoder", "text_encoder_2", "vae"] {
                found.extend(variants(&path.join(component), stem(component))?);
            }
            if !found.contains(variant) {
                let found: Vec<_> = found.iter().map(|v| if v.is_empty() { "(none)" } else { v }).collect();
                let found = found.join(", ");
                let problem = format!("no component has weights of variant {variant:?}; variants found: {found}");
                return Err(Error::invalid(path, problem));
            }
        }
        let denoiser = MmditConfig::open(&path.join("transformer/config.json"))?;
        let tokenizer: Value = read_json(&path.join("tokenizer/tokenizer_config.json"))?;
        let clip_tokens = tokenizer.get("model_max_length").and_then(Value::as_u64).unwrap_or(77) as usize;
        Ok(Self {
            checkpoint: Checkpoint::open(&path.join("transformer"), STEM, variant)?,
            path: path.to_owned(),
            variant: variant.map(str::to_owned),
            text_tokens: clip_tokens + manifest.generation.max_sequence_length,
            manifest,
            denoiser,
        })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last part of its path.
    #[must_use]
    pub fn name(&self) -> String {
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
    }

    /// The variant of weight files that was asked for.
    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// What the model says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Configuration of the denoiser.
    #[must_use]
    pub fn denoiser(&self) -> &MmditConfig {
        &self.denoiser
    }

    /// Name of the denoiser's component folder.
    #[must_use]
    pub fn denoiser_component(&self) -> &'static str {
        "transformer"
    }

    /// The denoiser's weight files.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Every file that the denoiser's activations depend on: all but the autoencoder's.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn activation_files(&self) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = self.checkpoint.paths().map(Path::to_owned).collect();
        files.push(self.path.join("transformer/config.json"));
        for component in ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
            let folder = self.path.join(component);
            for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
                files.push(entry.map_err(Error::io(&folder))?.path());
            }
        }
        files.retain(|file| file.is_file());
        files.sort();
        Ok(files)
    }

    /// The size the model was trained for.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let side = self.denoiser.sample_size;
        Geometry { latent: (side, side), text: self.text_tokens }
    }

    /// What a call takes for `samples` samples at that size. Text tokens that are equal to others are not computed, see
    /// [`Conditioning::multiplicity`](crate::Conditioning).
    #[must_use]
    pub fn memory(&self, samples: usize) -> Memory {
        let absent = self.manifest.generation.max_sequence_length.saturating_sub(1);
        let geometry = Geometry { text: self.text_tokens - absent, ..self.geometry() };
        let parameters = self.checkpoint.tensors().map(|(_, info)| info.shape.iter().product::<usize>() as u64).sum();
        self.denoiser.structure(&geometry).memory(parameters, samples)
    }

    /// The denoiser's description of itself, at the size it was trained for.
    #[must_use]
    pub fn structure(&self) -> Structure {
        self.denoiser.structure(&self.geometry())
    }

    /// The prompts of a list that comes with the model.
    ///
    /// # Errors
    /// If the model has none, or the file cannot be read.
    pub fn prompts(&self, list: impl Fn(&Prompts) -> &PathBuf) -> Result<Option<Vec<String>>> {
        self.manifest.prompts.as_ref().map(|prompts| read_prompts(&self.path.join(list(prompts)))).transpose()
    }
}

/// Prompts of a text file, one a line; empty lines are left out.
///
/// # Errors
/// If the file cannot be read, is not text, or holds no prompt.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let prompts: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if prompts.is_empty() {
        return Err(Error::invalid(path, "no prompts: one a line is expected"));
    }
    Ok(prompts)
}
