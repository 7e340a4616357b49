//! Cells of a table, each a JSON file.

use anyhow::{Context as _, Result};
use secateur_eval::Comparison;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};

/// What a row comes to for one seed.
#[derive(Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) comparison: Comparison,
    pub(crate) mean_layer_error: f64,
    pub(crate) largest_layer_error: f64,
    /// Shares of the denoiser's parameters that are zero or gone, and of its multiply-accumulates
    /// that are gone.
    pub(crate) removed: Option<[f64; 2]>,
}

/// The file of a cell.
pub(crate) fn path(out: &Path, seed: u64, row: &str) -> PathBuf {
    out.join(format!("seed{seed}-{row}.json"))
}

/// Nothing where it is not made yet.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path)?;
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}

/// Whole or not at all.
pub(crate) fn write(path: &Path, cell: &impl Serialize) -> Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, serde_json::to_string_pretty(cell)?)?;
    Ok(std::fs::rename(partial, path)?)
}
