//! The description of a pipeline class of diffusers.

use super::components::Components;
use crate::classes::conditioner::Conditioner;
use crate::error::Result;
use crate::files::{DIFFUSERS_STEM, TRANSFORMERS_STEM};
use crate::samplers::Instead;
use secateur_nn::Placement;
use serde_json::{Map, Value};

/// A class that `model_index.json` can name.
#[derive(Debug)]
pub(crate) struct PipelineClass {
    /// Its name in diffusers.
    pub(crate) name: &'static str,
    /// The component that a sampler calls at every step.
    pub(crate) denoiser: &'static str,
    /// All components that are read, including the denoiser and the scheduler.
    pub(crate) components: &'static [Component],
    /// The defaults of diffusers.
    pub(crate) generation: Generation,
    /// The kind of prompt that the model takes.
    pub(crate) subject: Subject,
    /// Whether the denoiser reads CLIP's tokens besides the `max_sequence_length` tokens of T5.
    pub(crate) reads_clip_tokens: bool,
    /// Whether guidance takes a second sample of every image, without the prompt.
    pub(crate) classifier_free: bool,
    /// Options of the scheduler that the class sets, whatever the file says.
    pub(crate) scheduler_options: &'static [Instead],
    /// See [`Run`](crate::Run).
    pub(crate) even_levels: bool,
    /// Whether the class adds the autoencoder's `shift_factor` to latents. Others ignore it.
    pub(crate) shifts: bool,
    /// Corrects the denoiser's configuration in outdated files.
    pub(crate) repair: fn(&mut Map<String, Value>),
    /// Loads the text encoders, and returns the conditioner.
    pub(crate) conditioner: fn(&Components) -> Result<Box<dyn Conditioner>>,
}

/// A part of a pipeline, in a folder of its own.
#[derive(Debug)]
pub(crate) struct Component {
    pub(crate) name: &'static str,
    /// The supported classes. Empty if the component's own configuration decides.
    pub(crate) classes: &'static [&'static str],
    /// Whether the component may be absent: `[null, null]` in `model_index.json`.
    pub(crate) optional: bool,
}

/// The kind of prompt that a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A text.
    Text,
    /// A class that the model was trained on.
    Label,
    /// None: the model is unconditional.
    Nothing,
}

impl Component {
    /// A component that must be present. It must be of one of `classes`. With none, any class
    /// passes here, and is checked when the configuration is read.
    pub(crate) const fn new(name: &'static str, classes: &'static [&'static str]) -> Self {
        Self { name, classes, optional: false }
    }

    /// A component that may be absent.
    pub(crate) const fn optional(name: &'static str, classes: &'static [&'static str]) -> Self {
        Self { name, classes, optional: true }
    }

    /// Whether the component has weights.
    pub(crate) fn has_weights(&self) -> bool {
        !self.name.starts_with("tokenizer") && self.name != "scheduler"
    }

    /// Where the component is computed, if its model is at `placement`: the activations of a T5 or
    /// an autoencoder can exceed f16's range.
    pub(crate) fn placement(&self, placement: &Placement) -> Placement {
        let exceeds = self.name == VAE.name || self.classes.contains(&"T5EncoderModel");
        if exceeds { placement.beyond_f16() } else { placement.clone() }
    }

    /// The stem of its weight files: the name in transformers or in diffusers.
    pub(crate) fn stem(&self) -> &'static str {
        if self.name.starts_with("text_encoder") { TRANSFORMERS_STEM } else { DIFFUSERS_STEM }
    }
}

pub(crate) const SCHEDULER: Component = Component::new("scheduler", &[]);

pub(crate) const VAE: Component = Component::new("vae", &["AutoencoderKL", "AutoencoderTiny"]);

pub(crate) const CLIP_TOKENIZER: &[&str] = &["CLIPTokenizer"];

/// The defaults of sampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Generation {
    /// Number of denoising steps.
    pub steps: usize,
    /// Guidance scale; 1 or less switches guidance off.
    pub guidance: f64,
    /// Number of text tokens for T5, including those that are zeros if there is no T5.
    pub max_sequence_length: usize,
}
