//! Blocks of one kind, one behind the other.

use crate::error::Result;
use crate::structure::Site;
use candle_core::Tensor;
use secateur_nn::{Context, LayerName};

/// Blocks `name.0`, `name.1` and so on. Each reads the one before it and is a unit, and its outputs
/// have the shapes of its inputs.
pub(crate) struct Chain<T> {
    name: LayerName,
    pub(crate) blocks: Vec<T>,
}

impl<T> Chain<T> {
    /// `count` blocks at `site`; `build` makes that of a number at its site.
    pub(crate) fn new(
        count: usize,
        site: &Site<'_>,
        build: impl Fn(usize, &Site<'_>) -> Result<T>,
    ) -> Result<Self> {
        site.residual();
        let block = |index| site.at(index).unit(|site| build(index, &site.block(&[])));
        Ok(Self { name: site.layer_name(), blocks: (0..count).map(block).collect::<Result<_>>()? })
    }

    /// Computes all blocks in a row on `tensors`. `forward` computes one of them.
    pub(crate) fn forward<const N: usize>(
        &self,
        mut tensors: [Tensor; N],
        context: &Context<'_>,
        forward: impl Fn(usize, &T, [Tensor; N]) -> Result<[Tensor; N]>,
    ) -> Result<[Tensor; N]> {
        for (index, block) in self.blocks.iter().enumerate() {
            let stretch = format_args!("{}.{index}", self.name);
            tensors =
                context.gated_array(stretch, tensors, |tensors| forward(index, block, tensors))?;
        }
        Ok(tensors)
    }
}
