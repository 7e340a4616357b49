//! Units: runs of blocks whose outputs a denoising step may reuse from an earlier step (DiP-GO, Zhu
//! et al. 2024, arXiv 2410.16942).

use crate::error::{Error, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// A run of blocks whose output can be reused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The common prefix of the blocks' names.
    pub name: String,
    /// Indices of the blocks in [`Structure::blocks`](crate::Structure::blocks).
    pub blocks: Range<usize>,
}

/// A reader of a unit's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reader {
    /// Another unit, by its index.
    Unit(usize),
    /// The layers after all units.
    Output,
}

/// What a reusing call takes from an earlier call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitKind {
    /// The output of a block, and the tensors that it passes to later blocks. Blocks that only
    /// reusing blocks read do not run either.
    Block,
    /// The output of a part of a UNet block: a residual block with its attention.
    Branch,
    /// The difference between the output and the input of a transformer block.
    Residual,
}

/// All kinds with their names.
const KINDS: [(UnitKind, &str); 3] =
    [(UnitKind::Block, "block"), (UnitKind::Branch, "branch"), (UnitKind::Residual, "residual")];

impl fmt::Display for UnitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KINDS.iter().find(|(kind, _)| kind == self).map_or("", |(_, name)| name))
    }
}

impl UnitKind {
    /// The tensors that later calls reuse, for a unit with these inputs and outputs.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn kept(self, inputs: &[Tensor], outputs: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
        match self {
            Self::Residual => outputs.iter().zip(inputs).map(|(y, x)| y - x).collect(),
            Self::Block | Self::Branch => Ok(outputs.to_vec()),
        }
    }

    /// The outputs of a unit that reuses `kept` for these inputs.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn outputs(self, inputs: &[Tensor], kept: Vec<Tensor>) -> candle_core::Result<Vec<Tensor>> {
        match self {
            Self::Residual => inputs.iter().zip(&kept).map(|(x, y)| x + y).collect(),
            Self::Block | Self::Branch => Ok(kept),
        }
    }
}

impl FromStr for UnitKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = KINDS.into_iter().find(|(_, known)| *known == name).map(|(kind, _)| kind);
        found.ok_or_else(|| {
            Error::Request(format!(
                "there is no kind of unit {name:?}: block, branch and residual are"
            ))
        })
    }
}
