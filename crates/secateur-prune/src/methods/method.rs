use crate::calibration::InputStatistics;
use crate::error::Result;
use crate::plan::Pattern;
use secateur_nn::LayerName;

/// The weight of one linear, outputs x inputs, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeight {
    /// The layer's checkpoint name.
    pub layer: LayerName,
    /// Rows: outputs.
    pub rows: usize,
    /// Columns: inputs.
    pub columns: usize,
    /// rows x columns.
    pub values: Vec<f32>,
}

/// How solving went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Solved {
    /// What was added to the Hessian's diagonal, relative to its mean; 0 where nothing was.
    pub damping: f64,
}

/// A way to choose and remove weights: statistics in, weights out.
pub trait Method: Sync {
    /// As users call it.
    fn name(&self) -> &'static str;

    /// Prunes, in place, layers that read the same input, each to its pattern.
    ///
    /// # Errors
    /// If a layer cannot have the pattern, or the statistics cannot be used.
    fn prune(
        &self,
        layers: &mut [(LayerWeight, Pattern)],
        statistics: &InputStatistics,
    ) -> Result<Solved>;

    /// Bytes that [`Method::prune`] takes for layers of at most `rows` x `columns`, beside weights
    /// and statistics.
    fn scratch(&self, rows: usize, columns: usize) -> u64;
}
