use crate::calibration::InputStatistics;
use crate::error::Result;
use crate::plan::Pattern;
use secateur_nn::LayerName;

/// The weight of one linear layer, outputs x inputs, row-major.
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

/// Remarks of a method on how it solved for the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Solved {
    /// The value that was added to the Hessian's diagonal, relative to the mean of the diagonal; 0
    /// if none was added.
    pub damping: f64,
}

/// A method that chooses and removes weights, given their statistics.
pub trait Method: Sync {
    /// The name that users give it.
    fn name(&self) -> &'static str;

    /// Prunes in place layers that read the same input, each to its pattern.
    ///
    /// # Errors
    /// If a layer cannot have its pattern, or the statistics cannot be used.
    fn prune(
        &self,
        layers: &mut [(LayerWeight, Pattern)],
        statistics: &InputStatistics,
    ) -> Result<Solved>;

    /// Bytes that [`Method::prune`] needs besides weights and statistics, for layers of at most
    /// `rows` x `columns`.
    fn scratch(&self, rows: usize, columns: usize) -> u64;
}
