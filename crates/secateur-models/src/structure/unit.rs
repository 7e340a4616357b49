//! Units: the stretches of blocks that a denoising step may take over from the step before (DiP-GO,
//! Zhu et al. 2024, arXiv 2410.16942).

use crate::error::{Error, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// A stretch of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The common prefix of their names.
    pub name: String,
    /// Where they stand among the structure's blocks.
    pub blocks: Range<usize>,
}

/// What reads a unit's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reader {
    /// Another unit.
    Unit(usize),
    /// The layers behind all units.
    Output,
}

/// What is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitKind {
    /// The output of a block, with all that is kept of it for later blocks. What feeds only such
    /// blocks is not computed either.
    Block,
    /// The output of a finer part of a UNet: a residual block with its attention.
    Branch,
    /// What a transformer block adds to its input.
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
    /// What later calls take over of a unit with these inputs and outputs.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn kept(self, inputs: &[Tensor], outputs: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
        match self {
            Self::Residual => outputs.iter().zip(inputs).map(|(y, x)| y - x).collect(),
            Self::Block | Self::Branch => Ok(outputs.to_vec()),
        }
    }

    /// The outputs of a unit with these inputs that takes over what was kept.
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
