//! `FluxPipeline`.

use super::components::Components;
use crate::classes::class::{
    CLIP_TOKENIZER, Component, Generation, PipelineClass, SCHEDULER, Subject, VAE,
};
use crate::classes::conditioner::{ClipEncoder, Conditioner, T5};
use crate::classes::sampling::Sampling;
use crate::conditioning::Conditioning;
use crate::error::Result;
use candle_core::{Device, Tensor};

pub(crate) const CLASS: PipelineClass = PipelineClass {
    name: "FluxPipeline",
    denoiser: "transformer",
    components: &[
        Component::new("transformer", &["FluxTransformer2DModel"]),
        VAE,
        SCHEDULER,
        Component::new("text_encoder", &["CLIPTextModel"]),
        Component::new("text_encoder_2", &["T5EncoderModel"]),
        Component::new("tokenizer", CLIP_TOKENIZER),
        Component::new("tokenizer_2", &["T5Tokenizer"]),
    ],
    generation: Generation { steps: 28, guidance: 3.5, max_sequence_length: 512 },
    subject: Subject::Text,
    reads_clip_tokens: false,
    classifier_free: false,
    scheduler_options: &[],
    even_levels: true,
    shifts: true,
    repair: |_| (),
    conditioner: |folder| Ok(Box::new(Flux::open(folder)?)),
};

/// Conditioning: T5's states, CLIP's pooled state, and the guidance scale, which the model was
/// trained to follow.
struct Flux {
    clip: ClipEncoder,
    t5: T5,
}

impl Flux {
    fn open(folder: &Components) -> Result<Self> {
        Ok(Self {
            clip: ClipEncoder::open(folder, "tokenizer", "text_encoder")?,
            t5: T5::open(folder, "tokenizer_2", "text_encoder_2")?,
        })
    }
}

impl Conditioner for Flux {
    fn positive(
        &self,
        prompts: &[String],
        _: (usize, usize),
        sampling: &Sampling,
    ) -> Result<Conditioning> {
        Ok(Conditioning {
            text: Some(self.t5.encode(prompts, sampling.max_sequence_length)?),
            pooled: Some(self.clip.encode(prompts)?.pooled),
            guidance: Some(Tensor::full(sampling.guidance as f32, prompts.len(), &Device::Cpu)?),
            ..Conditioning::default()
        })
    }
}
