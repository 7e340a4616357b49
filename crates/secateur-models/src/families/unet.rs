//! `UNet2DConditionModel` and `UNet2DModel`.

mod config;
mod model;

use crate::error::Result;
use crate::families::denoiser::{Denoiser, DenoiserConfig};
use crate::structure::Site;
pub use config::UnetConfig;
pub use model::Unet;

impl DenoiserConfig for UnetConfig {
    fn build(&self, site: &Site<'_>) -> Result<Box<dyn Denoiser>> {
        Ok(Box::new(Unet::new(self, site)?))
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
}
