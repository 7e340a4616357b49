//! What a pipeline class of diffusers is made of.

use super::components::Components;
use crate::classes::conditioner::Conditioner;
use crate::error::Result;
use crate::files::{DIFFUSERS_STEM, TRANSFORMERS_STEM};
use crate::samplers::Instead;
use serde_json::{Map, Value};

/// A class that `model_index.json` may name.
#[derive(Debug)]
pub(crate) struct PipelineClass {
    /// Its name in diffusers.
    pub(crate) name: &'static str,
    /// The component that is called at every step.
    pub(crate) denoiser: &'static str,
    /// All components that are read, the denoiser and the scheduler among them.
    pub(crate) components: &'static [Component],
    /// The defaults of diffusers.
    pub(crate) generation: Generation,
    /// What it draws.
    pub(crate) subject: Subject,
    /// Whether CLIP's tokens are part of the text that the denoiser reads, beside T5's
    /// `max_sequence_length`.
    pub(crate) reads_clip_tokens: bool,
    /// Whether guidance is a second call of the model, without the prompt.
    pub(crate) classifier_free: bool,
    /// Options of the scheduler that it corrects in outdated files.
    pub(crate) scheduler_options: &'static [Instead],
    /// See [`Run`](crate::Run).
    pub(crate) even_levels: bool,
    /// Whether it adds the autoencoder's `shift_factor` to latents, which the others ignore.
    pub(crate) shifts: bool,
    /// Corrects the denoiser's configuration in outdated files.
    pub(crate) repair: fn(&mut Map<String, Value>),
    /// Loads what turns prompts into conditioning.
    pub(crate) conditioner: fn(&Components) -> Result<Box<dyn Conditioner>>,
}

/// A part of a pipeline, in a folder of its own.
#[derive(Debug)]
pub(crate) struct Component {
    pub(crate) name: &'static str,
    /// The classes that are supported; none where the component's own configuration decides.
    pub(crate) classes: &'static [&'static str],
    /// May be absent: `[null, null]` in `model_index.json`.
    pub(crate) optional: bool,
}

/// What a model draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A text.
    Text,
    /// One of the classes that it was trained on.
    Label,
    /// Nothing: it draws what it likes.
    Nothing,
}

impl Component {
    /// One that must be there, of one of `classes`; of any where there are none, as its
    /// configuration is checked when it is read.
    pub(crate) const fn new(name: &'static str, classes: &'static [&'static str]) -> Self {
        Self { name, classes, optional: false }
    }

    /// One that may be absent.
    pub(crate) const fn optional(name: &'static str, classes: &'static [&'static str]) -> Self {
        Self { name, classes, optional: true }
    }

    /// Whether it has weights.
    pub(crate) fn has_weights(&self) -> bool {
        !self.name.starts_with("tokenizer") && self.name != "scheduler"
    }

    /// The name of its weight files without their ending: transformers' or diffusers' own.
    pub(crate) fn stem(&self) -> &'static str {
        if self.name.starts_with("text_encoder") { TRANSFORMERS_STEM } else { DIFFUSERS_STEM }
    }
}

pub(crate) const SCHEDULER: Component = Component::new("scheduler", &[]);

pub(crate) const VAE: Component = Component::new("vae", &["AutoencoderKL", "AutoencoderTiny"]);

pub(crate) const CLIP_TOKENIZER: &[&str] = &["CLIPTokenizer"];

/// How a model wants to be sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Generation {
    /// Denoising steps.
    pub steps: usize,
    /// Guidance scale; 1 or less switches guidance off.
    pub guidance: f64,
    /// Text tokens of T5, or that stand for them.
    pub max_sequence_length: usize,
}
