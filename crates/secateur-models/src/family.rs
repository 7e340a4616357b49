//! Denoisers of all families, by the class that a configuration names.

use crate::conditioning::Conditioning;
use crate::dit::DitConfig;
use crate::edits::Removals;
use crate::error::{Error, Result};
use crate::flux::FluxConfig;
use crate::mmdit::MmditConfig;
use crate::options::{Options, config_fields};
use crate::pixart::PixartConfig;
use crate::structure::{Geometry, Structure};
use crate::unet::UnetConfig;
use candle_core::Tensor;
use secateur_nn::{Context, Parameters, Scope, Wanted};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

/// The network that is called at every step.
pub trait Denoiser: Send + Sync {
    /// Predicts noise or velocity for `latents` (samples x channels x height x width) at `timesteps` (one a sample).
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
    /// Builds the model.
    ///
    /// # Errors
    /// If a placeholder cannot be made.
    fn build(&self, scope: &Scope<'_>) -> Result<Box<dyn Denoiser>>;

    /// What a model without the heads and neurons that are gone asks a checkpoint for, by name.
    ///
    /// # Errors
    /// As [`DenoiserConfig::build`].
    fn parameters(&self, removals: &Removals) -> Result<BTreeMap<String, Wanted>> {
        Parameters::wanted(removals.sizes(), |scope| self.build(&scope))
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

    /// The model's description of itself.
    fn structure(&self, geometry: &Geometry) -> Structure;
}

/// Reads the `config.json` of a denoiser, of the class that it names.
///
/// # Errors
/// If it cannot be read, contradicts itself, is of a class that is not known, or asks for something that is not
/// supported.
pub fn denoiser_config(path: &Path) -> Result<Arc<dyn DenoiserConfig>> {
    denoiser_config_of(path, &config_fields(path)?)
}

/// The configuration of a denoiser of the fields of its `config.json`.
///
/// # Errors
/// As [`denoiser_config`].
pub(crate) fn denoiser_config_of(path: &Path, fields: &Map<String, Value>) -> Result<Arc<dyn DenoiserConfig>> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    // Before they had classes of their own, DiT and PixArt were a Transformer2DModel with a norm_type.
    let class = match (text("_class_name"), text("norm_type")) {
        (Some("Transformer2DModel"), Some("ada_norm_zero")) => "DiTTransformer2DModel",
        (Some("Transformer2DModel"), Some("ada_norm_single")) => "PixArtTransformer2DModel",
        (Some(class), _) => class,
        (None, _) => return Err(Error::invalid(path, "_class_name is missing")),
    };
    let options = Options::new(path, fields);
    match class {
        "DiTTransformer2DModel" => Ok(Arc::new(DitConfig::read(options)?)),
        "PixArtTransformer2DModel" => Ok(Arc::new(PixartConfig::read(options)?)),
        "SD3Transformer2DModel" => Ok(Arc::new(MmditConfig::read(options)?)),
        "FluxTransformer2DModel" => Ok(Arc::new(FluxConfig::read(options)?)),
        "UNet2DConditionModel" | "UNet2DModel" => Ok(Arc::new(UnetConfig::read(options)?)),
        class => {
            let known = "DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, FluxTransformer2DModel, \
                         UNet2DConditionModel and UNet2DModel are";
            Err(options.invalid(format!("_class_name {class:?} is not supported; {known}")))
        }
    }
}
