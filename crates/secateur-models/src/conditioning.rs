//! The conditioning of a denoiser: all inputs besides the latents and the time.

use crate::error::{Error, Result, refuse};
use candle_core::{DType, Device, Tensor};
use secateur_nn::Placement;

/// The conditioning of a denoiser: all inputs besides the latents and the time. Each family reads
/// the fields that it needs. The first dimension of every tensor counts samples.
#[derive(Clone, Debug, Default)]
pub struct Conditioning {
    /// Text states: samples x tokens x width.
    pub text: Option<Tensor>,
    /// Pooled text: samples x width.
    pub pooled: Option<Tensor>,
    /// Sizes for SDXL, in pixels: samples x 6. They are height and width before cropping, top and
    /// left of the crop, and the wanted height and width.
    pub time_ids: Option<Tensor>,
    /// Sizes for PixArt, in pixels: samples x 2, height and width.
    pub resolution: Option<Tensor>,
    /// Class labels: samples (u32).
    pub labels: Option<Tensor>,
    /// Guidance scales, for a model that was trained to follow them by itself: samples.
    pub guidance: Option<Tensor>,
    /// For each text token the number of equal tokens that it stands for, or 0 if it must not be
    /// read: samples x tokens. `None` if all are 1. If the text has no positions, one token of
    /// multiplicity m gives the same result as m equal tokens.
    pub multiplicity: Option<Tensor>,
}

/// Score bias of a key that must not be read: its weight becomes 0 beside any other key. It is
/// finite, so that if no key may be read all keys weigh the same, as in diffusers.
const HIDDEN: f64 = -10_000.0;

impl Conditioning {
    /// The text states.
    ///
    /// # Errors
    /// If there are none: the model needs a text.
    pub fn text(&self) -> Result<&Tensor> {
        needed(&self.text, "text states")
    }

    /// The pooled text.
    ///
    /// # Errors
    /// If there is none.
    pub fn pooled(&self) -> Result<&Tensor> {
        needed(&self.pooled, "pooled text")
    }

    /// The sizes for SDXL.
    ///
    /// # Errors
    /// If there are none.
    pub fn time_ids(&self) -> Result<&Tensor> {
        needed(&self.time_ids, "sizes (time_ids)")
    }

    /// The size for PixArt.
    ///
    /// # Errors
    /// If there is none.
    pub fn resolution(&self) -> Result<&Tensor> {
        needed(&self.resolution, "a resolution")
    }

    /// The class labels.
    ///
    /// # Errors
    /// If there are none.
    pub fn labels(&self) -> Result<&Tensor> {
        needed(&self.labels, "class labels")
    }

    /// The guidance scales.
    ///
    /// # Errors
    /// If there are none.
    pub fn guidance(&self) -> Result<&Tensor> {
        needed(&self.guidance, "guidance scales")
    }

    /// The multiplicity of the keys of an attention: of `others` tokens with multiplicity 1, then
    /// of the text tokens. `None` if all are 1.
    ///
    /// # Errors
    /// If the multiplicity is not samples x tokens numbers.
    pub(crate) fn multiplicity(&self, others: usize) -> Result<Option<Multiplicity>> {
        self.multiplicity
            .as_ref()
            .map(|multiplicity| Multiplicity::new(multiplicity, others))
            .transpose()
    }

    /// Repeats every text token as often as its multiplicity says, which must be the same in all
    /// samples.
    ///
    /// # Errors
    /// If the multiplicity has another number of tokens than the text.
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

    /// Moves all tensors to `placement`: the texts in the type that is computed in, sizes, scales
    /// and multiplicities in `f32`.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn at(&self, placement: &Placement) -> Result<Self> {
        let exact = placement.in_f32();
        let others = Self { text: None, pooled: None, ..self.clone() };
        let states = |tensor: &Option<Tensor>| {
            tensor.as_ref().map(|tensor| placement.bring(tensor)).transpose()
        };
        Ok(Self {
            text: states(&self.text)?,
            pooled: states(&self.pooled)?,
            ..others.map(|tensor| Ok(exact.bring(tensor)?))?
        })
    }

    /// Joins conditionings along their samples. All must hold the same fields.
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

    /// The sample `index`.
    ///
    /// # Errors
    /// If there is no such sample.
    pub(crate) fn sample(&self, index: usize) -> Result<Self> {
        // A copy: what is narrowed keeps all samples alive.
        self.map(|tensor| Ok(tensor.narrow(0, index, 1)?.force_contiguous()?))
    }

    /// Repeats a single sample.
    ///
    /// # Errors
    /// If there is not exactly one sample.
    pub(crate) fn repeat(&self, samples: usize) -> Result<Self> {
        self.map(|tensor| {
            let mut shape = tensor.dims().to_vec();
            shape[0] = samples;
            Ok(tensor.broadcast_as(shape)?.contiguous()?)
        })
    }

    /// All tensors that are there, in the order of the fields.
    pub(crate) fn tensors(&self) -> Vec<Tensor> {
        let Self { text, pooled, time_ids, resolution, labels, guidance, multiplicity } = self;
        [text, pooled, time_ids, resolution, labels, guidance, multiplicity]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// The same fields with other tensors, in the order of [`Conditioning::tensors`].
    ///
    /// # Errors
    /// If there are fewer.
    pub(crate) fn with_tensors(&self, tensors: &[Tensor]) -> Result<Self> {
        let mut tensors = tensors.iter();
        self.map(|_| match tensors.next() {
            Some(tensor) => Ok(tensor.clone()),
            None => refuse!("a conditioning with too few tensors"),
        })
    }

    /// Applies `change` to every tensor, in the order of the fields.
    fn map(&self, mut change: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let mut changed = |tensor: &Option<Tensor>| tensor.as_ref().map(&mut change).transpose();
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

/// The multiplicity of text tokens: each stands for several equal ones, or for none.
#[derive(Clone, Debug)]
pub(crate) struct Multiplicity {
    /// Of each text token: samples x tokens.
    pub(crate) of_text: Tensor,
    /// Of each key: samples x keys. The text comes last.
    pub(crate) of_keys: Tensor,
    /// Score bias of each key: ln m, as m equal keys weigh as much as one key with ln m added to
    /// its score. Samples x keys.
    pub(crate) key_bias: Tensor,
}

impl Multiplicity {
    fn new(multiplicity: &Tensor, others: usize) -> Result<Self> {
        let of_text = multiplicity.to_dtype(DType::F32)?;
        of_text.dims2()?;
        let of_keys = match others {
            0 => of_text.clone(),
            _ => {
                let shape = (of_text.dim(0)?, others);
                let of_others = Tensor::ones(shape, DType::F32, of_text.device())?;
                Tensor::cat(&[&of_others, &of_text], 1)?
            }
        };
        Ok(Self { key_bias: of_keys.log()?.maximum(HIDDEN)?, of_text, of_keys })
    }
}
