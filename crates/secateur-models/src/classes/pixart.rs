//! `PixArtAlphaPipeline` and `PixArtSigmaPipeline`.

use crate::classes::class::{Component, Generation, PipelineClass, SCHEDULER, Subject, VAE};
use crate::classes::conditioner::{Conditioner, T5, each};
use crate::classes::sampling::Sampling;
use crate::conditioning::Conditioning;
use crate::error::Result;
pub(crate) const ALPHA: PipelineClass = PipelineClass {
    name: "PixArtAlphaPipeline",
    denoiser: "transformer",
    components: &[
        Component::new("transformer", &["PixArtTransformer2DModel", "Transformer2DModel"]),
        VAE,
        SCHEDULER,
        Component::new("text_encoder", &["T5EncoderModel"]),
        Component::new("tokenizer", &["T5Tokenizer"]),
    ],
    generation: Generation { steps: 20, guidance: 4.5, max_sequence_length: 120 },
    subject: Subject::Text,
    reads_clip_tokens: false,
    classifier_free: true,
    scheduler_options: &[],
    even_levels: false,
    shifts: false,
    repair: |_| (),
    conditioner: |folder| Ok(Box::new(PixArt(T5::open(folder, "tokenizer", "text_encoder")?))),
};

pub(crate) const SIGMA: PipelineClass = PipelineClass {
    name: "PixArtSigmaPipeline",
    generation: Generation { max_sequence_length: 300, ..ALPHA.generation },
    ..ALPHA
};

/// Conditioning: T5's states, whose padding is not read, and the size of the image.
struct PixArt(T5);

impl Conditioner for PixArt {
    fn positive(
        &self,
        prompts: &[String],
        size: (usize, usize),
        sampling: &Sampling,
    ) -> Result<Conditioning> {
        // As diffusers does where it is not asked to clean captions.
        let prompts: Vec<String> =
            prompts.iter().map(|prompt| prompt.to_lowercase().trim().to_owned()).collect();
        let (text, mask) = self.0.encode_masked(&prompts, sampling.max_sequence_length)?;
        Ok(Conditioning {
            text: Some(text),
            multiplicity: Some(mask),
            resolution: Some(each(prompts.len(), [size.0 as f32, size.1 as f32])?),
            ..Conditioning::default()
        })
    }
}
