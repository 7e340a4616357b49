//! The quantities that models predict, and how the image and the noise follow from them.

use crate::error::{Error, Result};
use crate::samplers::options::Options;
use crate::samplers::training::Level;
use candle_core::{D, Tensor};
use serde::Deserialize;

/// The quantity that a model predicts (`prediction_type`).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub enum Prediction {
    /// The noise e.
    #[serde(rename = "epsilon")]
    Noise,
    /// The image x0.
    #[serde(rename = "sample")]
    Image,
    /// alpha e - sigma x0: Salimans and Ho 2022, <https://arxiv.org/abs/2202.00512>.
    #[serde(rename = "v_prediction")]
    Velocity,
    /// e - x0: Lipman et al. 2023, <https://arxiv.org/abs/2210.02747>.
    #[serde(rename = "flow_prediction")]
    Flow,
}

/// A sum of the latents and the model's output, each times a factor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    pub(crate) latents: f64,
    pub(crate) output: f64,
}

impl Mix {
    pub(crate) fn of(self, latents: &Tensor, output: &Tensor) -> Result<Tensor> {
        combine((self.latents, latents), &[(self.output, output)])
    }
}

impl Prediction {
    fn name(self) -> &'static str {
        match self {
            Self::Noise => "epsilon",
            Self::Image => "sample",
            Self::Velocity => "v_prediction",
            Self::Flow => "flow_prediction",
        }
    }

    /// Reads a configuration, which must name one of `known`.
    pub(crate) fn read(options: &Options, known: &[Self]) -> Result<Self> {
        let prediction = options.get("prediction_type", Self::Noise)?;
        let names: Vec<&str> = known.iter().map(|prediction| prediction.name()).collect();
        if known.contains(&prediction) {
            Ok(prediction)
        } else {
            Err(options.refuse("prediction_type", names.join(" or ")))
        }
    }

    /// The predicted image in latents alpha x0 + sigma e. With alpha 0, predicted noise does not
    /// determine it.
    pub(crate) fn image(self, Level { alpha, sigma }: Level) -> Result<Mix> {
        match self {
            Self::Noise if alpha == 0.0 => {
                let problem = "the scheduler starts from pure noise (rescale_betas_zero_snr), \
                    where prediction_type \
                               \"epsilon\" tells nothing of the image";
                Err(Error::Request(problem.into()))
            }
            Self::Noise => Ok(Mix { latents: 1.0 / alpha, output: -sigma / alpha }),
            Self::Image => Ok(Mix { latents: 0.0, output: 1.0 }),
            Self::Velocity => Ok(Mix { latents: alpha, output: -sigma }),
            Self::Flow => Ok(Mix { latents: 1.0, output: -sigma }),
        }
    }

    /// Latents alpha x0 + sigma e, and the output that the model should give for them.
    pub(crate) fn pair(
        self,
        level: Level,
        image: &Tensor,
        noise: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let Level { alpha, sigma } = level;
        let target = match self {
            Self::Noise => noise.clone(),
            Self::Image => image.clone(),
            Self::Velocity => combine((alpha, noise), &[(-sigma, image)])?,
            Self::Flow => combine((1.0, noise), &[(-1.0, image)])?,
        };
        Ok((combine((alpha, image), &[(sigma, noise)])?, target))
    }

    /// The predicted noise in latents alpha x0 + sigma e.
    pub(crate) fn noise(self, Level { alpha, sigma }: Level) -> Mix {
        match self {
            Self::Noise => Mix { latents: 0.0, output: 1.0 },
            Self::Image => Mix { latents: 1.0 / sigma, output: -alpha / sigma },
            Self::Velocity => Mix { latents: sigma, output: alpha },
            Self::Flow => Mix { latents: 1.0, output: alpha },
        }
    }
}

/// How a predicted image is kept in range.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    None,
    /// Values are cut at this magnitude (`clip_sample`).
    Clip(f64),
    /// Values are cut at a quantile of each sample's magnitudes, and then divided by it. The
    /// quantile itself is clamped to [1, `most`] (`thresholding`): Saharia et al. 2022, section
    /// 2.3, <https://arxiv.org/abs/2205.11487>.
    Quantile {
        share: f64,
        most: f64,
    },
}

impl Limit {
    /// Reads `clip_sample`, with the class's default.
    pub(crate) fn clip(options: &Options, default: bool) -> Result<Self> {
        let range = options.positive("clip_sample_range", 1.0)?;
        Ok(if options.flag("clip_sample", default)? { Self::Clip(range) } else { Self::None })
    }

    /// Reads `thresholding`; this one where it is off.
    pub(crate) fn or_quantile(self, options: &Options) -> Result<Self> {
        if !options.flag("thresholding", false)? {
            return Ok(self);
        }
        let share = options.positive("dynamic_thresholding_ratio", 0.995)?;
        if share > 1.0 {
            return Err(options.refuse("dynamic_thresholding_ratio", "a share of at most 1"));
        }
        Ok(Self::Quantile { share, most: options.positive("sample_max_value", 1.0)? })
    }

    pub(crate) fn of(self, image: Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(image),
            Self::Clip(range) => Ok(image.clamp(-range, range)?),
            Self::Quantile { share, most } => {
                let flat = image.flatten_from(1)?;
                let bound =
                    quantile(&flat.abs()?, share)?.clamp(1.0, most)?.broadcast_as(flat.shape())?;
                Ok((flat.clamp(&bound.neg()?, &bound)? / bound)?.reshape(image.shape())?)
            }
        }
    }
}

/// The quantile of each row, linear between the two values next to it.
fn quantile(rows: &Tensor, share: f64) -> Result<Tensor> {
    let (sorted, _) = rows.sort_last_dim(true)?;
    let last = rows.dim(1)? - 1;
    let rank = share * last as f64;
    let below = rank as usize;
    let (low, high) =
        (sorted.narrow(D::Minus1, below, 1)?, sorted.narrow(D::Minus1, last.min(below + 1), 1)?);
    let share = rank - below as f64;
    combine((1.0 - share, &low), &[(share, &high)])
}

/// A sum of tensors of one shape, each times a factor.
pub(crate) fn combine(first: (f64, &Tensor), rest: &[(f64, &Tensor)]) -> Result<Tensor> {
    let scaled = |(factor, tensor): (f64, &Tensor)| match factor {
        1.0 => Ok(tensor.clone()),
        _ => tensor.affine(factor, 0.0),
    };
    let mut sum = scaled(first)?;
    for term in rest.iter().filter(|(factor, _)| *factor != 0.0) {
        sum = (sum + scaled(*term)?)?;
    }
    Ok(sum)
}
