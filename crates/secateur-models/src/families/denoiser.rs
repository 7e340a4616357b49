//! The interface of denoisers and of their configurations.

use crate::conditioning::Conditioning;
use crate::error::Result;
use crate::structure::{Description, Geometry, Removals, Site, Structure};
use candle_core::Tensor;
use secateur_nn::{Context, Parameters, Wanted};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// The network that a sampler calls at every step.
pub trait Denoiser: Send + Sync {
    /// Predicts noise or velocity for `latents` (samples x channels x height x width) at
    /// `timesteps` (one per sample, `f32`). The result may have more channels than `latents`: a
    /// variance follows them.
    ///
    /// # Errors
    /// If the shapes do not fit, or the probe or the gates of the context fail.
    fn forward(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor>;
}

/// The configuration of a denoiser: all that is known of it without its weights.
pub trait DenoiserConfig: Debug + Send + Sync {
    /// Builds the model, in execution order.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    fn build(&self, site: &Site<'_>) -> Result<Box<dyn Denoiser>>;

    /// The parameters that the model takes from a checkpoint, by name. The model lacks `removals`.
    ///
    /// # Errors
    /// As [`DenoiserConfig::build`].
    fn parameters(&self, removals: &Removals) -> Result<BTreeMap<String, Wanted>> {
        Parameters::wanted(removals.sizes(), |scope| self.build(&scope.into()))
    }

    /// Shape of one image's latents at the training size: channels x height x width.
    fn latent_shape(&self) -> [usize; 3];

    /// Whether the configuration does not give the training size.
    fn is_of_unknown_size(&self) -> bool {
        false
    }

    /// Side of the square of latents that becomes one token; 1 if the model has no patches.
    fn patch(&self) -> usize {
        1
    }

    /// The largest height and width of latents.
    fn largest_side(&self) -> usize {
        4096
    }

    /// Number of image tokens for latents of `size` (height, width).
    fn image_tokens(&self, size: (usize, usize)) -> usize {
        (size.0 / self.patch()) * (size.1 / self.patch())
    }

    /// Width of the text states that the model reads; 0 if it reads no text.
    fn text_width(&self) -> usize {
        0
    }

    /// Number of classes; 0 if the model has none. The label behind the last class stands for no
    /// class.
    fn classes(&self) -> usize {
        0
    }

    /// Records the structure of the model, which lacks `removals`.
    ///
    /// # Errors
    /// As [`DenoiserConfig::build`].
    fn describe(&self, removals: &Removals) -> Result<Description> {
        Description::of(removals.sizes(), |site| self.build(site))
    }

    /// The structure of the whole model, for latents and text of these sizes.
    ///
    /// # Errors
    /// As [`DenoiserConfig::build`].
    fn structure(&self, geometry: &Geometry) -> Result<Structure> {
        Ok(self.describe(&Removals::default())?.at(geometry))
    }
}
