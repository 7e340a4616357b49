//! What a denoiser is conditioned on beside the latents and the time.

use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};
use secateur_nn::Placement;
use std::sync::Arc;

/// What a denoiser is conditioned on beside the latents and the time; each family takes what it
/// needs. Every tensor's first dimension counts samples.
#[derive(Clone, Debug, Default)]
pub struct Conditioning {
    /// Text states: samples x tokens x width.
    pub text: Option<Tensor>,
    /// Pooled text: samples x width.
    pub pooled: Option<Tensor>,
    /// The sizes that SDXL is conditioned on: samples x 6, height and width before cropping, top
    /// and left of the crop, height and width asked for, in pixels.
    pub time_ids: Option<Tensor>,
    /// The sizes that PixArt is conditioned on: samples x 2, height and width in pixels.
    pub resolution: Option<Tensor>,
    /// Class labels: samples (u32).
    pub labels: Option<Tensor>,
    /// Guidance scales, for a model that was trained to follow them by itself: samples.
    pub guidance: Option<Tensor>,
    /// For how many equal text tokens each one stands, samples x tokens, where any is not 1; 0 for
    /// one that is not to be read. A family whose text has no positions gives the same result for
    /// one token of multiplicity m as for m equal tokens.
    pub multiplicity: Option<Tensor>,
}

/// What is added to the score of a key that is not to be read: its weight becomes 0 beside any
/// other key's. It is finite so that where no key may be read all are, equally, as in diffusers.
const HIDDEN: f32 = -10_000.0;

impl Conditioning {
    /// Text states.
    ///
    /// # Errors
    /// If there are none.
    pub fn text(&self) -> Result<&Tensor> {
        needed(&self.text, "text states")
    }

    /// Pooled text.
    ///
    /// # Errors
    /// If there is none.
    pub fn pooled(&self) -> Result<&Tensor> {
        needed(&self.pooled, "pooled text")
    }

    /// Sizes.
    ///
    /// # Errors
    /// If there are none.
    pub fn time_ids(&self) -> Result<&Tensor> {
        needed(&self.time_ids, "sizes (time_ids)")
    }

    /// Size in pixels.
    ///
    /// # Errors
    /// If there is none.
    pub fn resolution(&self) -> Result<&Tensor> {
        needed(&self.resolution, "a resolution")
    }

    /// Class labels.
    ///
    /// # Errors
    /// If there are none.
    pub fn labels(&self) -> Result<&Tensor> {
        needed(&self.labels, "class labels")
    }

    /// Guidance scales.
    ///
    /// # Errors
    /// If there are none.
    pub fn guidance(&self) -> Result<&Tensor> {
        needed(&self.guidance, "guidance scales")
    }

    /// The multiplicity of the text tokens, where any is not 1, for attention whose keys are
    /// `others` tokens that stand for themselves and then the text.
    ///
    /// # Errors
    /// If it is not of samples x tokens numbers.
    pub(crate) fn multiplicity(&self, others: usize) -> Result<Option<Multiplicity>> {
        self.multiplicity
            .as_ref()
            .map(|multiplicity| Multiplicity::new(multiplicity, others))
            .transpose()
    }

    /// The same with every text token as often as it stands, for multiplicities that are the same
    /// in all samples.
    ///
    /// # Errors
    /// If the multiplicity is not of as many tokens.
    pub fn spelled_out(&self) -> Result<Self> {
        let Some(multiplicity) = &self.multiplicity else { return Ok(self.clone()) };
        let of_sample = multiplicity.get(0)?.to_vec1::<f32>()?;
        let tokens = of_sample
            .iter()
            .zip(0u32..)
            .flat_map(|(&times, token)| std::iter::repeat_n(token, times as usize));
        let tokens = Tensor::from_iter(tokens, &Device::Cpu)?;
        let text = self.text.as_ref().map(|text| text.index_select(&tokens, 1)).transpose()?;
        Ok(Self { text, multiplicity: None, ..self.clone() })
    }

    /// The same for a denoiser at `placement`: what it computes with is brought there, and what it
    /// is told as numbers stays on the CPU.
    ///
    /// # Errors
    /// If there is no room.
    pub(crate) fn at(self, placement: &Placement) -> Result<Self> {
        let there = |tensor: Option<Tensor>| {
            tensor.map(|tensor| Ok::<_, Error>(placement.bring(&tensor)?)).transpose()
        };
        Ok(Self { text: there(self.text)?, pooled: there(self.pooled)?, ..self })
    }

    /// All one after another; they hold the same things.
    ///
    /// # Errors
    /// If the shapes differ.
    pub(crate) fn cat(all: &[&Self]) -> Result<Self> {
        let joined = |of: fn(&Self) -> &Option<Tensor>| {
            let tensors: Vec<&Tensor> = all.iter().filter_map(|one| of(one).as_ref()).collect();
            if tensors.is_empty() { Ok(None) } else { Tensor::cat(&tensors, 0).map(Some) }
        };
        Ok(Self {
            text: joined(|one| &one.text)?,
            pooled: joined(|one| &one.pooled)?,
            time_ids: joined(|one| &one.time_ids)?,
            resolution: joined(|one| &one.resolution)?,
            labels: joined(|one| &one.labels)?,
            guidance: joined(|one| &one.guidance)?,
            multiplicity: joined(|one| &one.multiplicity)?,
        })
    }

    /// One of its samples.
    ///
    /// # Errors
    /// If there are fewer.
    pub(crate) fn sample(&self, index: usize) -> Result<Self> {
        // A copy: what is narrowed keeps all samples alive.
        self.map(|tensor| Ok(tensor.narrow(0, index, 1)?.force_contiguous()?))
    }

    /// The same single sample several times.
    ///
    /// # Errors
    /// If it is not a single one.
    pub(crate) fn repeat(&self, samples: usize) -> Result<Self> {
        self.map(|tensor| {
            let mut shape = tensor.dims().to_vec();
            shape[0] = samples;
            Ok(tensor.broadcast_as(shape)?.contiguous()?)
        })
    }

    /// `change` of every tensor.
    fn map(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let changed = |tensor: &Option<Tensor>| tensor.as_ref().map(&change).transpose();
        Ok(Self {
            text: changed(&self.text)?,
            pooled: changed(&self.pooled)?,
            time_ids: changed(&self.time_ids)?,
            resolution: changed(&self.resolution)?,
            labels: changed(&self.labels)?,
            guidance: changed(&self.guidance)?,
            multiplicity: changed(&self.multiplicity)?,
        })
    }
}

fn needed<'a>(tensor: &'a Option<Tensor>, what: &str) -> Result<&'a Tensor> {
    tensor
        .as_ref()
        .ok_or_else(|| Error::Request(format!("this model needs {what}, and was given none")))
}

/// Text tokens that stand for several equal ones, or for none.
#[derive(Clone, Debug)]
pub(crate) struct Multiplicity {
    /// Of each text token of each sample.
    pub(crate) of_text: Arc<[f32]>,
    /// Of each key of each sample, text last.
    pub(crate) of_keys: Arc<[f32]>,
    /// What is added to the score of each key of each sample: ln m, as m equal keys weigh as much
    /// as one with ln m added to its score.
    pub(crate) key_bias: Arc<[f32]>,
}

impl Multiplicity {
    fn new(multiplicity: &Tensor, others: usize) -> Result<Self> {
        let of_text = multiplicity.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let of_keys = |text: &Vec<f32>| std::iter::repeat_n(1.0, others).chain(text.clone());
        let of_keys: Arc<[f32]> = of_text.iter().flat_map(of_keys).collect();
        Ok(Self {
            key_bias: of_keys.iter().map(|m| m.ln().max(HIDDEN)).collect(),
            of_text: of_text.concat().into(),
            of_keys,
        })
    }
}
