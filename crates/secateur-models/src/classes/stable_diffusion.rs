//! `StableDiffusionPipeline`: SD1.x and SD2.x.

use crate::classes::class::{
    CLIP_TOKENIZER, Component, Generation, PipelineClass, SCHEDULER, Subject, VAE,
};
use crate::classes::conditioner::{ClipEncoder, Conditioner};
use crate::classes::sampling::Sampling;
use crate::conditioning::Conditioning;
use crate::error::Result;
use crate::samplers::Instead;
use serde_json::{Map, Value};

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
    shifts: false,
    repair: latents_of_64,
    conditioner: |folder| {
        Ok(Box::new(StableDiffusion(ClipEncoder::open(folder, "tokenizer", "text_encoder")?)))
    },
};

/// Before version 0.9 files of diffusers had a `sample_size` of 32 for models of 64.
fn latents_of_64(unet: &mut Map<String, Value>) {
    let version = unet.get("_diffusers_version").and_then(Value::as_str).unwrap_or("0.9");
    let mut parts = version.split('.').map_while(|part| part.parse::<u32>().ok());
    let is_old = parts.next() == Some(0) && parts.next().is_some_and(|minor| minor < 9);
    if is_old
        && let Some(side) =
            unet.get_mut("sample_size").filter(|side| side.as_u64().is_some_and(|side| side < 64))
    {
        *side = 64.into();
    }
}

/// Conditioning: CLIP's last states.
struct StableDiffusion(ClipEncoder);

impl Conditioner for StableDiffusion {
    fn positive(
        &self,
        prompts: &[String],
        _: (usize, usize),
        _: &Sampling,
    ) -> Result<Conditioning> {
        Ok(Conditioning { text: Some(self.0.encode(prompts)?.last), ..Conditioning::default() })
    }
}
