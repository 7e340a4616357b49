//! The interface of autoencoders and of their configurations.

use crate::error::{Error, Result};
use crate::files::Checkpoint;
use crate::structure::{Description, Geometry, Operation};
use candle_core::Tensor;
use secateur_nn::Fit;
use std::fmt::Debug;
use std::path::Path;

/// A model that decodes latents to pictures.
pub trait Autoencoder: Send + Sync {
    /// Decodes unscaled latents (samples x channels x height x width) to pictures in [-1, 1]
    /// (samples x 3 x height x width).
    ///
    /// # Errors
    /// If the shape does not fit.
    fn decode(&self, latents: &Tensor) -> Result<Tensor>;

    /// `scaling_factor` and `shift_factor`. The denoiser's latents are (latents - shift) * scale.
    fn scale_and_shift(&self) -> (f64, f64);

    /// Decodes latents of the denoiser to pictures in [0, 1], samples x height x width x 3.
    /// `shifted` says whether the pipeline class uses `shift_factor`. Samples are decoded one at a
    /// time, as a full-size picture takes gigabytes.
    ///
    /// # Errors
    /// If the shape does not fit.
    fn pictures(&self, latents: &Tensor, shifted: bool) -> Result<Tensor> {
        let (scale, shift) = self.scale_and_shift();
        let latents = latents.affine(1.0 / scale, if shifted { shift } else { 0.0 })?;
        let mut pictures = Vec::new();
        for sample in 0..latents.dim(0)? {
            pictures.push(self::pictures(&self.decode(&latents.narrow(0, sample, 1)?)?)?);
        }
        Ok(Tensor::cat(&pictures, 0)?)
    }
}

/// Pictures in [-1, 1] (samples x channels x height x width) to pictures in [0, 1] (samples x
/// height x width x channels).
pub(crate) fn pictures(decoded: &Tensor) -> Result<Tensor> {
    Ok(decoded.affine(0.5, 0.5)?.clamp(0f32, 1f32)?.permute((0, 2, 3, 1))?.contiguous()?)
}

/// The configuration of an autoencoder.
pub trait AutoencoderConfig: Debug + Send + Sync {
    /// Height and width, in pixels, of the square that one latent becomes.
    fn factor(&self) -> usize;

    /// Channels of the latents.
    fn channels(&self) -> usize;

    /// Records the model's structure. The decoder is the last block.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    fn describe(&self) -> Result<Description>;

    /// The operations of the decoder for latents of that height and width, in execution order.
    ///
    /// # Errors
    /// As [`AutoencoderConfig::describe`].
    fn decoder(&self, latent: (usize, usize)) -> Result<Vec<Operation>> {
        let decoder = self.describe()?.at(&Geometry { latent, text: 0 }).blocks.pop();
        let layers = decoder.into_iter().flat_map(|block| block.layers);
        Ok(layers.map(|layer| layer.operation).collect())
    }

    /// Checks how the model fits the weights.
    ///
    /// # Errors
    /// If something is missing or of another shape.
    fn fit(&self, checkpoint: &Checkpoint) -> Result<Fit>;

    /// Loads the model.
    ///
    /// # Errors
    /// If its files cannot be read or do not fit each other.
    fn load(&self, checkpoint: &Checkpoint) -> Result<Box<dyn Autoencoder>>;
}

/// Refuses a configuration that has a 0 for one of its `sizes` or its `scaling_factor`.
pub(crate) fn no_zeros(path: &Path, sizes: &[(&str, usize)], scaling_factor: f64) -> Result<()> {
    let size = sizes.iter().find(|(_, size)| *size == 0).map(|(key, _)| *key);
    match size.or((scaling_factor == 0.0).then_some("scaling_factor")) {
        Some(key) => Err(Error::invalid(path, format!("{key} is 0"))),
        None => Ok(()),
    }
}
