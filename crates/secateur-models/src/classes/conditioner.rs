//! The conversion of prompts to the conditioning of a pipeline class.

use super::components::Components;
use crate::classes::sampling::Sampling;
use crate::conditioning::Conditioning;
use crate::encoders::{
    ClipTextModel, ClipTextOutput, ClipTokenizer, PROJECTED, T5Encoder, T5Tokenizer,
};
use crate::error::{Result, invalid};
use candle_core::{Device, Tensor};

/// Turns prompts into conditioning for the denoiser.
pub(crate) trait Conditioner: Send + Sync {
    /// The conditioning of each of `prompts`, for pictures of `size` (height, width) in pixels.
    fn positive(
        &self,
        prompts: &[String],
        size: (usize, usize),
        sampling: &Sampling,
    ) -> Result<Conditioning>;

    /// The conditioning of the negative prompt as one sample, for classifier-free guidance.
    fn negative(&self, size: (usize, usize), sampling: &Sampling) -> Result<Conditioning> {
        self.positive(std::slice::from_ref(&sampling.negative_prompt), size, sampling)
    }
}

/// A CLIP text encoder with its tokenizer.
pub(crate) struct ClipEncoder {
    tokenizer: ClipTokenizer,
    encoder: ClipTextModel,
}

impl ClipEncoder {
    pub(crate) fn open(folder: &Components, tokenizer: &str, encoder: &str) -> Result<Self> {
        let path = folder.path.join(tokenizer);
        let tokenizer = ClipTokenizer::open(&path)?;
        let projected = folder.class_of(encoder) == Some(PROJECTED);
        let encoder = ClipTextModel::open(
            &folder.path.join(encoder),
            projected,
            folder.variant.as_deref(),
            &folder.placement,
        )?;
        let (length, positions) = (tokenizer.length(), encoder.positions());
        if length > positions {
            invalid!(
                path.join("tokenizer_config.json"),
                "model_max_length makes {length} tokens, and the text encoder has {positions} \
                 positions"
            );
        }
        Ok(Self { tokenizer, encoder })
    }

    pub(crate) fn encode(&self, prompts: &[String]) -> Result<ClipTextOutput> {
        self.encoder.forward(&self.tokenizer.encode_batch(prompts)?)
    }
}

/// A T5 encoder with its tokenizer.
pub(crate) struct T5 {
    tokenizer: T5Tokenizer,
    encoder: T5Encoder,
}

impl T5 {
    pub(crate) fn open(folder: &Components, tokenizer: &str, encoder: &str) -> Result<Self> {
        Ok(Self {
            tokenizer: T5Tokenizer::open(&folder.path.join(tokenizer))?,
            encoder: T5Encoder::open(
                &folder.path.join(encoder),
                folder.variant.as_deref(),
                &folder.placement.beyond_f16(),
            )?,
        })
    }

    /// Text states of `length` tokens. Padding is read as text.
    pub(crate) fn encode(&self, prompts: &[String], length: usize) -> Result<Tensor> {
        let (ids, _) = self.tokenizer.encode_batch(prompts, length)?;
        self.encoder.forward(&ids, None)
    }

    /// Text states of `length` tokens, and their mask: 1 for a token of text, 0 for one of padding,
    /// which is not read.
    pub(crate) fn encode_masked(
        &self,
        prompts: &[String],
        length: usize,
    ) -> Result<(Tensor, Tensor)> {
        let (ids, mask) = self.tokenizer.encode_batch(prompts, length)?;
        Ok((self.encoder.forward(&ids, Some(&mask))?, mask))
    }
}

/// Repeats `values` for each of `samples` samples: samples x values.
pub(crate) fn each<const N: usize>(samples: usize, values: [f32; N]) -> Result<Tensor> {
    Ok(Tensor::new(&values, &Device::Cpu)?.broadcast_as((samples, N))?.contiguous()?)
}
