//! Distances between pictures that gradients flow through.

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::fmt;

/// A distance between pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// 1 - SSIM (Wang et al. 2004), over windows of 11 x 11 pixels.
    #[default]
    Ssim,
    /// The mean absolute difference.
    L1,
    /// The mean squared difference.
    L2,
}

/// Side of the window of SSIM.
const WINDOW: usize = 11;
/// Standard deviation of the Gaussian over it.
const SIGMA: f64 = 1.5;
/// (0.01 L)^2 and (0.03 L)^2 for pictures in [0, L = 1].
const C1: f64 = 1e-4;
const C2: f64 = 9e-4;

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ssim => "ssim",
            Self::L1 => "l1",
            Self::L2 => "l2",
        })
    }
}

impl Loss {
    /// Returns the distance between pictures (samples x height x width x channels) in [0, 1]: a
    /// scalar, the mean over all samples.
    ///
    /// # Errors
    /// If the shapes differ, or the pictures are smaller than SSIM's window.
    pub fn of(self, pictures: &Tensor, wanted: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Ssim => (1.0 - ssim(pictures, wanted)?)?,
            Self::L1 => (pictures - wanted)?.abs()?.mean_all()?,
            Self::L2 => (pictures - wanted)?.sqr()?.mean_all()?,
        })
    }
}

fn ssim(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (_, height, width, _) = a.dims4()?;
    if height < WINDOW || width < WINDOW {
        let problem = format!(
            "pictures of {width} x {height} pixels are too small for SSIM, which looks at {WINDOW} \
             x {WINDOW}: give `loss l1` or `loss l2`"
        );
        return Err(Error::Request(problem));
    }
    let (down, across) = (means(height)?, means(width)?);
    let mean = |x: &Tensor| local_means(x, &down, &across);
    let (mean_a, mean_b) = (mean(a)?, mean(b)?);
    let (square_a, square_b, both) = (mean_a.sqr()?, mean_b.sqr()?, (&mean_a * &mean_b)?);
    let variances = ((mean(&a.sqr()?)? - &square_a)? + (mean(&b.sqr()?)? - &square_b)?)?;
    let covariance = (mean(&(a * b)?)? - &both)?;
    let similar = (both.affine(2.0, C1)? * covariance.affine(2.0, C2)?)?;
    let sizes = ((square_a + square_b)?.affine(1.0, C1)? * variances.affine(1.0, C2)?)?;
    Ok((similar / sizes)?.mean_all()?)
}

/// Returns the matrix (size - 10 x size) that maps a vector to Gaussian-weighted means of its
/// successive entries.
fn means(size: usize) -> Result<Tensor> {
    let centre = (WINDOW / 2) as f64;
    let weights: Vec<f64> =
        (0..WINDOW).map(|i| (-(i as f64 - centre).powi(2) / (2.0 * SIGMA * SIGMA)).exp()).collect();
    let total: f64 = weights.iter().sum();
    let places = size - WINDOW + 1;
    let entry = |place: usize, i: usize| {
        i.checked_sub(place).and_then(|i| weights.get(i)).map_or(0.0, |weight| weight / total)
    };
    let values: Vec<f32> = (0..places)
        .flat_map(|place| (0..size).map(move |i| (place, i)))
        .map(|(place, i)| entry(place, i) as f32)
        .collect();
    Ok(Tensor::from_vec(values, (places, size), &Device::Cpu)?)
}

/// Returns the means over windows of each channel: samples x channels x places down x places
/// across, in some order of the axes.
fn local_means(x: &Tensor, down: &Tensor, across: &Tensor) -> Result<Tensor> {
    let (samples, height, width, channels) = x.dims4()?;
    let x = x.permute((0, 3, 1, 2))?.contiguous()?.reshape((samples * channels * height, width))?;
    let x = x.matmul(&across.t()?)?.reshape((samples * channels, height, ()))?;
    let x = x.transpose(1, 2)?.contiguous()?;
    let places = x.dim(1)?;
    Ok(x.reshape((samples * channels * places, height))?.matmul(&down.t()?)?)
}
