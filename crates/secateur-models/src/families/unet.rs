//! `UNet2DConditionModel` and `UNet2DModel`.

mod config;
mod description;
mod model;

use crate::error::Result;
use crate::families::denoiser::{Denoiser, DenoiserConfig};
use crate::structure::{Geometry, Structure};
pub use config::UnetConfig;
pub use model::Unet;
use secateur_nn::Scope;

impl DenoiserConfig for UnetConfig {
    fn build(&self, scope: &Scope<'_>) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Unet::new(self, scope)?))
    }

    fn latent_shape(&self) -> [usize; 3] {
        [self.in_channels, self.sample_size.0, self.sample_size.1]
    }

    fn is_of_unknown_size(&self) -> bool {
        self.unknown_size
    }

    fn text_width(&self) -> usize {
        self.text
    }

    fn structure(&self, geometry: &Geometry) -> Structure {
        description::describe(self, geometry)
    }
}
