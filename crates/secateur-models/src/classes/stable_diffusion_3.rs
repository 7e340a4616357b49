//! `StableDiffusion3Pipeline`: SD3 and SD3.5.

use super::components::Components;
use crate::classes::class::{
    CLIP_TOKENIZER, Component, Generation, PipelineClass, SCHEDULER, Subject, VAE,
};
use crate::classes::conditioner::{ClipEncoder, Conditioner, T5};
use crate::classes::sampling::Sampling;
use crate::conditioning::Conditioning;
use crate::error::{Result, refuse};
use candle_core::{DType, Device, Tensor};

pub(crate) const CLASS: PipelineClass = PipelineClass {
    name: "StableDiffusion3Pipeline",
    denoiser: "transformer",
    components: &[
        Component::new("transformer", &["SD3Transformer2DModel"]),
        VAE,
        SCHEDULER,
        Component::new("text_encoder", &["CLIPTextModelWithProjection"]),
        Component::new("text_encoder_2", &["CLIPTextModelWithProjection"]),
        Component::optional("text_encoder_3", &["T5EncoderModel"]),
        Component::new("tokenizer", CLIP_TOKENIZER),
        Component::new("tokenizer_2", CLIP_TOKENIZER),
        Component::optional("tokenizer_3", &["T5Tokenizer"]),
    ],
    generation: Generation { steps: 28, guidance: 7.0, max_sequence_length: 256 },
    subject: Subject::Text,
    reads_clip_tokens: true,
    classifier_free: true,
    scheduler_options: &[],
    even_levels: false,
    shifts: true,
    repair: |_| (),
    conditioner: |folder| Ok(Box::new(StableDiffusion3::open(folder)?)),
};

/// Conditioning: text states and pooled text. The text states are first those of both CLIPs before
/// their last layers, side by side and padded with zeros to the denoiser's width. T5's states
/// follow them, or zeros if there is no T5. The pooled text is both CLIPs' projections.
struct StableDiffusion3 {
    encoders: [ClipEncoder; 2],
    t5: Option<T5>,
    /// Width of the text states.
    width: usize,
}

impl StableDiffusion3 {
    fn open(folder: &Components) -> Result<Self> {
        let t5 = match folder.has("text_encoder_3") {
            true => Some(T5::open(folder, "tokenizer_3", "text_encoder_3")?),
            false => None,
        };
        Ok(Self {
            encoders: [
                ClipEncoder::open(folder, "tokenizer", "text_encoder")?,
                ClipEncoder::open(folder, "tokenizer_2", "text_encoder_2")?,
            ],
            t5,
            width: folder.denoiser.text_width(),
        })
    }
}

impl Conditioner for StableDiffusion3 {
    fn positive(
        &self,
        prompts: &[String],
        _: (usize, usize),
        sampling: &Sampling,
    ) -> Result<Conditioning> {
        let outputs = self
            .encoders
            .iter()
            .map(|encoder| encoder.encode(prompts))
            .collect::<Result<Vec<_>>>()?;
        let states: Vec<&Tensor> = outputs.iter().map(|output| &output.penultimate).collect();
        let pooled: Vec<&Tensor> = outputs.iter().map(|output| &output.pooled).collect();
        let clip = Tensor::cat(&states, 2)?;
        let (samples, tokens, width) = clip.dims3()?;
        if width > self.width {
            refuse!(
                "CLIP states of width {width} do not fit a joint_attention_dim of {}",
                self.width
            );
        }
        let clip = clip.pad_with_zeros(2, 0, self.width - width)?;
        let pooled = Some(Tensor::cat(&pooled, 1)?);
        let length = sampling.max_sequence_length;
        let (text, multiplicity) = match &self.t5 {
            _ if length == 0 => (clip, None),
            Some(t5) => (Tensor::cat(&[&clip, &t5.encode(prompts, length)?], 1)?, None),
            // Zeros in place of T5 are equal and stay so, as the text has no positions: one
            // token stands for all.
            None => {
                let zeros = clip.narrow(1, 0, 1)?.zeros_like()?;
                let ones = Tensor::ones((samples, tokens), DType::F32, &Device::Cpu)?;
                let times = Tensor::full(length as f32, (samples, 1), &Device::Cpu)?;
                (Tensor::cat(&[&clip, &zeros], 1)?, Some(Tensor::cat(&[&ones, &times], 1)?))
            }
        };
        Ok(Conditioning { text: Some(text), pooled, multiplicity, ..Conditioning::default() })
    }
}
