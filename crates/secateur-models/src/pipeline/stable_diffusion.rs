//! `StableDiffusionPipeline`: SD1.x and SD2.x.

use super::Sampling;
use super::class::{CLIP_TOKENIZER, Component, PipelineClass, SCHEDULER, Subject, VAE};
use super::conditioner::{ClipEncoder, Conditioner};
use crate::conditioning::Conditioning;
use crate::error::Result;
use crate::manifest::Generation;
use crate::scheduler::Instead;

pub(crate) const CLASS: PipelineClass = PipelineClass {
    name: "StableDiffusionPipeline",
    denoiser: "unet",
    components: &[
        Component::new("unet", &["UNet2DConditionModel"]),
        VAE,
        SCHEDULER,
        Component::new("text_encoder", &["CLIPTextModel"]),
        Component::new("tokenizer", CLIP_TOKENIZER),
    ],
    generation: Generation { steps: 50, guidance: 7.5, max_sequence_length: 0 },
    subject: Subject::Text,
    reads_clip_tokens: true,
    classifier_free: true,
    scheduler_options: &[Instead::Number("steps_offset", 1), Instead::Flag("clip_sample", false)],
    even_levels: false,
    conditioner: |folder| Ok(Box::new(StableDiffusion(ClipEncoder::open(folder, "tokenizer", "text_encoder")?))),
};

/// CLIP's last states.
struct StableDiffusion(ClipEncoder);

impl Conditioner for StableDiffusion {
    fn positive(&self, prompts: &[String], _: (usize, usize), _: &Sampling) -> Result<Conditioning> {
        Ok(Conditioning { text: Some(self.0.encode(prompts)?.last), ..Conditioning::default() })
    }
}
