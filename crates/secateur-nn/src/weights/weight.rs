//! One parameter of a model.

use candle_core::Tensor;
use secateur_kernels::{ConvolutionWeight, LinearWeight};
use std::sync::{Arc, OnceLock};

/// A parameter: its numbers, and the packed form in which products read them, made on first use.
/// Clones share both, so that a model that is built again from the same weights packs none of them
/// twice.
#[derive(Clone, Debug)]
pub struct Weight(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    tensor: Tensor,
    packed: OnceLock<Packed>,
}

/// The packed form of a weight.
#[derive(Debug)]
pub(crate) enum Packed {
    Linear(Arc<LinearWeight>),
    Convolution(Arc<ConvolutionWeight>),
    /// Outputs x kernel x kernel x channels.
    #[cfg(feature = "cudnn")]
    ChannelsLast(Tensor),
}

impl Weight {
    /// The numbers of the parameter.
    #[must_use]
    pub fn tensor(&self) -> &Tensor {
        &self.0.tensor
    }

    /// Returns the packed form, which `pack` makes on first use. It takes as much memory as the
    /// weight, and twice as much once a gradient has gone back through it.
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
