//! Autoencoders of all kinds, by the class that a configuration names.

mod autoencoder;
mod kl;
mod tiny;

use crate::error::{Result, invalid};
use crate::files::config_fields;
pub(crate) use autoencoder::pictures;
pub use autoencoder::{Autoencoder, AutoencoderConfig};
pub use kl::{AutoencoderKl, AutoencoderKlConfig};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
pub use tiny::{AutoencoderTiny, AutoencoderTinyConfig};

/// Reads the `config.json` of an autoencoder, of the class that it names.
///
/// # Errors
/// If it cannot be read, contradicts itself, is of a class that is not known, or asks for something
/// that is not supported.
pub fn autoencoder_config(path: &Path) -> Result<Arc<dyn AutoencoderConfig>> {
    match config_fields(path)?.get("_class_name").and_then(Value::as_str) {
        Some(class) => autoencoder_config_of(path, class),
        None => invalid!(path, "_class_name is missing"),
    }
}

/// Reads the `config.json` of an autoencoder of `class`.
///
/// # Errors
/// As [`autoencoder_config`].
pub(crate) fn autoencoder_config_of(
    path: &Path,
    class: &str,
) -> Result<Arc<dyn AutoencoderConfig>> {
    match class {
        "AutoencoderKL" => Ok(Arc::new(AutoencoderKlConfig::open(path)?)),
        "AutoencoderTiny" => Ok(Arc::new(AutoencoderTinyConfig::open(path)?)),
        _ => {
            invalid!(
                path,
                "_class_name {class:?} is not supported; AutoencoderKL and AutoencoderTiny are"
            )
        }
    }
}
