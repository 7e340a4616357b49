//! Denoisers of all families, by the class that a configuration names.

pub(crate) mod denoiser;
mod joint;
mod patch;
mod unet;

use crate::error::{Result, invalid};
use crate::files::{Options, config_fields};
pub use denoiser::{Denoiser, DenoiserConfig};
pub use joint::{Flux, FluxConfig, Mmdit, MmditConfig};
pub use patch::{Dit, DitConfig, Pixart, PixartConfig};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;
pub use unet::{Unet, UnetConfig};

/// Reads the `config.json` of a denoiser, of the class that it names.
///
/// # Errors
/// If it cannot be read, contradicts itself, is of a class that is not known, or asks for something
/// that is not supported.
pub fn denoiser_config(path: &Path) -> Result<Arc<dyn DenoiserConfig>> {
    denoiser_config_of(path, &config_fields(path)?)
}

/// The configuration of a denoiser of the fields of its `config.json`.
///
/// # Errors
/// As [`denoiser_config`].
pub(crate) fn denoiser_config_of(
    path: &Path,
    fields: &Map<String, Value>,
) -> Result<Arc<dyn DenoiserConfig>> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    // Before they had classes of their own, DiT and PixArt were a Transformer2DModel with a
    // norm_type.
    let class = match (text("_class_name"), text("norm_type")) {
        (Some("Transformer2DModel"), Some("ada_norm_zero")) => "DiTTransformer2DModel",
        (Some("Transformer2DModel"), Some("ada_norm_single")) => "PixArtTransformer2DModel",
        (Some(class), _) => class,
        (None, _) => invalid!(path, "_class_name is missing"),
    };
    let options = Options::new(path, fields);
    match class {
        "DiTTransformer2DModel" => Ok(Arc::new(DitConfig::read(options)?)),
        "PixArtTransformer2DModel" => Ok(Arc::new(PixartConfig::read(options)?)),
        "SD3Transformer2DModel" => Ok(Arc::new(MmditConfig::read(options)?)),
        "FluxTransformer2DModel" => Ok(Arc::new(FluxConfig::read(options)?)),
        "UNet2DConditionModel" | "UNet2DModel" => Ok(Arc::new(UnetConfig::read(options)?)),
        class => {
            let known = "DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, \
                FluxTransformer2DModel, \
                         UNet2DConditionModel and UNet2DModel are";
            Err(options.invalid(format!("_class_name {class:?} is not supported; {known}")))
        }
    }
}
