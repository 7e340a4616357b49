//! What every denoiser is and tells about itself.

use crate::conditioning::Conditioning;
use crate::error::Result;
use crate::structure::{Description, Geometry, Removals, Site, Structure};
use candle_core::Tensor;
use secateur_nn::{Context, Parameters, Wanted};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// The network that is called at every step.
pub trait Denoiser: Send + Sync {
    /// Predicts noise or velocity for `latents` (samples x channels x height x width) at
    /// `timesteps` (one a sample).
    ///
    /// # Errors
    /// If the shapes do not fit, or the context's probe objects.
    fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f32],
        conditioning: &Conditioning,
        context: &Context<'_>,
    ) -> Result<Tensor>;
}

/// The configuration of a denoiser: all that can be known of it without its weights.
pub trait DenoiserConfig: Debug + Send + Sync {
    /// Builds the model, in execution order.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    fn build(&self, site: &Site<'_>) -> Result<Box<dyn Denoiser>>;

    /// What a model without the heads and neurons that are gone asks a checkpoint for, by name.
    ///
    /// # Errors
    /// As [`DenoiserConfig::build`].
    fn parameters(&self, removals: &Removals) -> Result<BTreeMap<String, Wanted>> {
        Parameters::wanted(removals.sizes(), |scope| self.build(&scope.into()))
    }

    /// Shape of one image's latents at the size it was trained for: channels x height x width.
    fn latent_shape(&self) -> [usize; 3];

    /// Whether its configuration does not say that size.
    fn is_of_unknown_size(&self) -> bool {
        false
    }

    /// Side of the squares that it cuts latents into.
    fn patch(&self) -> usize {
        1
    }

    /// The most latents that an image is high or wide.
    fn largest_side(&self) -> usize {
        4096
    }

    /// Image tokens of latents of `size` (height, width): their squares.
    fn image_tokens(&self, size: (usize, usize)) -> usize {
        (size.0 / self.patch()) * (size.1 / self.patch())
    }

    /// Width of the text states that it reads.
    fn text_width(&self) -> usize {
        0
    }

    /// The classes that it knows; the label behind the last one stands for none of them.
    fn classes(&self) -> usize {
        0
    }

    /// What the constructors of a model without the heads and neurons that are gone record of it.
    ///
    /// # Errors
    /// As [`DenoiserConfig::build`].
    fn describe(&self, removals: &Removals) -> Result<Description> {
        Description::of(removals.sizes(), |site| self.build(site))
    }

    /// The layers of a model that lacks nothing, for pictures and texts of that size.
    ///
    /// # Errors
    /// As [`DenoiserConfig::build`].
    fn structure(&self, geometry: &Geometry) -> Result<Structure> {
        Ok(self.describe(&Removals::default())?.at(geometry))
    }
}
