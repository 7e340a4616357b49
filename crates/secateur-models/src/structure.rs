//! The description of a denoiser: its blocks, layers, heads, neurons and units.

mod block;
mod edits;
mod group;
mod site;
mod unit;

use crate::error::{Result, refuse};
use crate::structure::block::saturating_sum;
pub use block::{Block, Geometry, Layer, Operation, Prunable, Role};
pub use edits::{Cuts, Edits, Removal, Removals};
pub use group::{
    Axis, Between, DimensionGroup, Group, HeadGroup, HeadStream, NeuronGroup, Pair, Part, Slice,
};
use secateur_nn::Placement;
pub(crate) use site::Rows;
pub use site::{Description, Site};
use std::collections::BTreeSet;
pub use unit::{Reader, Unit, UnitKind};

/// The blocks of a denoiser in execution order, with every layer that multiplies.
#[derive(Clone, Debug, Default)]
pub struct Structure {
    /// All blocks. The embedders come first, the output last.
    pub blocks: Vec<Block>,
    /// The units whose outputs a denoising step may reuse from an earlier step (DiP-GO's blocks),
    /// in execution order.
    pub units: Vec<Unit>,
    /// Finer units (DiP-GO's branches). The same as `units` if the family has none.
    pub branches: Vec<Unit>,
    /// Whether the outputs of each unit have the shapes of its inputs, so that their difference can
    /// be reused.
    pub residual: bool,
    /// Peak number of activations of one sample in a call, without the weights.
    pub activations: usize,
}

/// Memory of a call of a denoiser, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// Bytes of the parameters.
    pub weights: u64,
    /// Peak bytes of the activations.
    pub activations: u64,
}

impl Memory {
    /// Sum of all parts, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.activations
    }

    /// The memory on `placement` of what takes this much in f32 on the CPU.
    pub(crate) fn at(self, placement: &Placement) -> Self {
        let at = |bytes: u64| bytes / size_of::<f32>() as u64 * placement.bytes_of_a_number();
        Self { weights: at(self.weights), activations: at(self.activations) }
    }
}

impl Description {
    /// Computes the structure for latents and texts of the sizes in `geometry`.
    #[must_use]
    pub fn at(&self, geometry: &Geometry) -> Structure {
        let pixels: Vec<usize> = self
            .pictures(geometry.latent)
            .iter()
            .map(|(height, width)| height.saturating_mul(*width))
            .collect();
        let count = |rows| match rows {
            Rows::Fixed(count) => count,
            Rows::Text => geometry.text,
            Rows::Pixels(picture) => pixels[picture],
            Rows::Joint(picture) => pixels[picture] + geometry.text,
        };
        let mut blocks = self.blocks.clone();
        for (block, layer, rows) in &self.layers {
            let [rows, keys] = rows.map(count);
            let operation = layer.operation.over(rows, keys);
            blocks[*block].layers.push(Layer { operation, ..layer.clone() });
        }
        let alive = |numbers: &Vec<(Rows, usize)>| {
            numbers.iter().map(|&(rows, each)| count(rows).saturating_mul(each)).sum()
        };
        let branches = if self.branches.is_empty() { &self.units } else { &self.branches };
        Structure {
            blocks,
            units: self.units.clone(),
            branches: branches.clone(),
            residual: self.residual,
            activations: self.alive.iter().map(alive).max().unwrap_or(0),
        }
    }

    /// All groups of heads, dimensions of heads, and neurons.
    pub(crate) fn groups(&self) -> impl Iterator<Item = Group> {
        self.blocks.iter().flat_map(Block::groups)
    }
}

impl Structure {
    /// All groups of heads, dimensions of heads, and neurons.
    pub fn groups(&self) -> impl Iterator<Item = Group> {
        self.blocks.iter().flat_map(Block::groups)
    }

    /// The readers of the output of each of `units`, which are in execution order.
    #[must_use]
    pub fn readers(&self, units: &[Unit]) -> Vec<BTreeSet<Reader>> {
        let unit_of = |block: usize| units.iter().position(|unit| unit.blocks.contains(&block));
        let mut readers = vec![BTreeSet::new(); units.len()];
        for (index, block) in self.blocks.iter().enumerate() {
            let reader = unit_of(index);
            for from in block
                .reads
                .iter()
                .filter_map(|&read| unit_of(read))
                .filter(|&from| Some(from) != reader)
            {
                readers[from].insert(reader.map_or(Reader::Output, Reader::Unit));
            }
        }
        readers
    }

    /// Multiply-accumulates of `unit` for one sample.
    #[must_use]
    pub fn unit_macs(&self, unit: &Unit) -> u64 {
        saturating_sum(self.blocks[unit.blocks.clone()].iter().map(Block::macs))
    }

    /// All layers in execution order.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.blocks.iter().flat_map(|block| &block.layers)
    }

    /// Memory of a call with `samples` samples on the CPU. `parameters` is the number of the
    /// model's parameters.
    #[must_use]
    pub fn memory(&self, parameters: u64, samples: usize) -> Memory {
        let bytes = size_of::<f32>() as u64;
        Memory {
            weights: bytes * parameters,
            activations: bytes
                .saturating_mul((self.activations as u64).saturating_mul(samples as u64)),
        }
    }

    /// Bytes, in f32, that a call keeps for gradients for one sample: the inputs and outputs of all
    /// layers.
    #[must_use]
    pub fn graph_bytes(&self) -> u64 {
        self.layers().map(|layer| layer.operation.graph_bytes()).sum()
    }

    /// Bytes of the weights that are packed a second time when gradients go back through a call:
    /// the weights of all layers except those that read only the time.
    #[must_use]
    pub fn backward_bytes(&self) -> u64 {
        let through = self.layers().filter(|layer| layer.operation.rows() > 1);
        size_of::<f32>() as u64 * through.map(|layer| layer.operation.weights()).sum::<u64>()
    }

    /// Bytes, in f32, that the units of a kind pass to later units in a call for one sample.
    ///
    /// # Errors
    /// As [`Structure::units_of`].
    pub fn handed_on_bytes(&self, kind: UnitKind) -> Result<u64> {
        let is_read = |index: usize, unit: &Unit| {
            let mut others =
                self.blocks.iter().enumerate().filter(|(other, _)| !unit.blocks.contains(other));
            index + 1 == unit.blocks.end || others.any(|(_, other)| other.reads.contains(&index))
        };
        let of_unit = |unit: &Unit| {
            let read = unit.blocks.clone().filter(|&index| is_read(index, unit));
            read.map(|index| self.blocks[index].outputs()).sum::<usize>()
        };
        Ok((size_of::<f32>() * self.units_of(kind)?.iter().map(of_unit).sum::<usize>()) as u64)
    }

    /// Multiply-accumulates of one call for one sample: linears, convolutions and both products of
    /// attention. Guidance, which doubles the samples, is not counted.
    #[must_use]
    pub fn macs(&self) -> u64 {
        saturating_sum(self.layers().map(|layer| layer.operation.macs()))
    }

    /// [`Structure::macs`] without the attention products.
    #[must_use]
    pub fn macs_without_attention(&self) -> u64 {
        let weighted =
            self.layers().filter(|layer| !matches!(layer.operation, Operation::Attention { .. }));
        saturating_sum(weighted.map(|layer| layer.operation.macs()))
    }

    /// The units of a kind, in execution order.
    ///
    /// # Errors
    /// If the model has no units of the kind.
    pub fn units_of(&self, kind: UnitKind) -> Result<&[Unit]> {
        let units = match kind {
            UnitKind::Residual if !self.residual => &[],
            UnitKind::Block | UnitKind::Residual => self.units.as_slice(),
            UnitKind::Branch => self.branches.as_slice(),
        };
        match units {
            [] => refuse!(
                "the model has no units of the kind {kind}: its blocks change their input's shape"
            ),
            units => Ok(units),
        }
    }

    /// Which units of a kind must run if those with `wanted` true are wanted. A wanted unit need
    /// not run if only units that do not run read its output.
    ///
    /// # Errors
    /// As [`Structure::units_of`].
    pub fn live(&self, kind: UnitKind, wanted: &[bool]) -> Result<Vec<bool>> {
        let mut live = wanted.to_vec();
        if kind == UnitKind::Residual {
            return Ok(live);
        }
        let readers = self.readers(self.units_of(kind)?);
        for unit in (0..live.len()).rev() {
            live[unit] &= is_read(&readers[unit], &live);
        }
        Ok(live)
    }

    /// For each unit of a kind, whether any layer reads its output in a call that runs the units
    /// with `computed` true.
    pub(crate) fn read(&self, kind: UnitKind, computed: &[bool]) -> Result<Vec<bool>> {
        let units = self.units_of(kind)?;
        Ok(match kind {
            UnitKind::Residual => vec![true; units.len()],
            UnitKind::Block | UnitKind::Branch => {
                self.readers(units).iter().map(|readers| is_read(readers, computed)).collect()
            }
        })
    }
}

fn is_read(readers: &BTreeSet<Reader>, computed: &[bool]) -> bool {
    readers.iter().any(|reader| match *reader {
        Reader::Output => true,
        Reader::Unit(reader) => computed[reader],
    })
}
