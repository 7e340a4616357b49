//! `StableDiffusionXLPipeline`.

use super::components::Components;
use crate::classes::class::{
    CLIP_TOKENIZER, Component, Generation, PipelineClass, SCHEDULER, Subject, VAE,
};
use crate::classes::conditioner::{ClipEncoder, Conditioner, each};
use crate::classes::sampling::Sampling;
use crate::conditioning::Conditioning;
use crate::error::Result;
use candle_core::Tensor;
use serde_json::Value;

pub(crate) const CLASS: PipelineClass = PipelineClass {
    name: "StableDiffusionXLPipeline",
    denoiser: "unet",
    components: &[
        Component::new("unet", &["UNet2DConditionModel"]),
        VAE,
        SCHEDULER,
        Component::new("text_encoder", &["CLIPTextModel"]),
        Component::new("text_encoder_2", &["CLIPTextModelWithProjection"]),
        Component::new("tokenizer", CLIP_TOKENIZER),
        Component::new("tokenizer_2", CLIP_TOKENIZER),
    ],
    generation: Generation { steps: 50, guidance: 5.0, max_sequence_length: 0 },
    subject: Subject::Text,
    reads_clip_tokens: true,
    classifier_free: true,
    scheduler_options: &[],
    even_levels: false,
    shifts: false,
    repair: |_| (),
    conditioner: |folder| Ok(Box::new(StableDiffusionXl::open(folder)?)),
};

/// Conditioning: both CLIPs' states before their last layers, side by side; the second CLIP's
/// projection; sizes.
struct StableDiffusionXl {
    encoders: [ClipEncoder; 2],
    /// Whether an empty negative prompt becomes zeros, and is not encoded.
    force_zeros_for_empty_prompt: bool,
}

impl StableDiffusionXl {
    fn open(folder: &Components) -> Result<Self> {
        let force_zeros = folder.index("force_zeros_for_empty_prompt").and_then(Value::as_bool);
        Ok(Self {
            encoders: [
                ClipEncoder::open(folder, "tokenizer", "text_encoder")?,
                ClipEncoder::open(folder, "tokenizer_2", "text_encoder_2")?,
            ],
            force_zeros_for_empty_prompt: force_zeros.unwrap_or(true),
        })
    }
}

impl Conditioner for StableDiffusionXl {
    fn positive(
        &self,
        prompts: &[String],
        size: (usize, usize),
        _: &Sampling,
    ) -> Result<Conditioning> {
        let [first, second] = &self.encoders;
        let (first, second) = (first.encode(prompts)?, second.encode(prompts)?);
        let (height, width) = (size.0 as f32, size.1 as f32);
        Ok(Conditioning {
            text: Some(Tensor::cat(&[first.penultimate, second.penultimate], 2)?),
            pooled: Some(second.pooled),
            time_ids: Some(each(prompts.len(), [height, width, 0.0, 0.0, height, width])?),
            ..Conditioning::default()
        })
    }

    fn negative(&self, size: (usize, usize), sampling: &Sampling) -> Result<Conditioning> {
        let negative =
            self.positive(std::slice::from_ref(&sampling.negative_prompt), size, sampling)?;
        if !(self.force_zeros_for_empty_prompt && sampling.negative_prompt.is_empty()) {
            return Ok(negative);
        }
        let zeros = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::zeros_like).transpose();
        Ok(Conditioning {
            text: zeros(&negative.text)?,
            pooled: zeros(&negative.pooled)?,
            ..negative
        })
    }
}
