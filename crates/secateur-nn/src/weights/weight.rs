//! One parameter of a model.

use candle_core::Tensor;
use secateur_kernels::{ConvolutionWeight, LinearWeight};
use std::sync::{Arc, OnceLock};

/// A parameter: its numbers, and the form in which products read them, made when first needed.
/// Clones share both, so a model that is built again from the same weights packs none of them
/// twice.
#[derive(Clone, Debug)]
pub struct Weight(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tensor: Tensor,
    packed: OnceLock<Packed>,
}

/// How products read a weight.
#[derive(Debug)]
pub(crate) enum Packed {
    Linear(Arc<LinearWeight>),
    Convolution(Arc<ConvolutionWeight>),
    /// Outputs x kernel x kernel x channels.
    #[cfg(feature = "cudnn")]
    ChannelsLast(Tensor),
}

impl Weight {
    /// Its numbers.
    #[must_use]
    pub fn tensor(&self) -> &Tensor {
        &self.0.tensor
    }

    /// The packed form, which `pack` makes when it is first asked for. As much memory again as the
    /// weight, and once more where a gradient goes back through it.
    pub(crate) fn packed(
        &self,
        pack: impl FnOnce(&Tensor) -> candle_core::Result<Packed>,
    ) -> candle_core::Result<&Packed> {
        match self.0.packed.get() {
            Some(packed) => Ok(packed),
            None => {
                let packed = pack(&self.0.tensor)?;
                Ok(self.0.packed.get_or_init(|| packed))
            }
        }
    }
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Self(Arc::new(Shared { tensor, packed: OnceLock::new() }))
    }
}
