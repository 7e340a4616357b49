use crate::calibration::InputStatistics;
use crate::error::Result;
use crate::plan::Pattern;
use candle_core::{Device, Tensor};
use secateur_nn::{LayerName, ops, to_device};

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

impl LayerWeight {
    /// Reads the weight of a layer (outputs x inputs, `f32`).
    pub(crate) fn read(layer: &LayerName, weight: &Tensor) -> Result<Self> {
        let (rows, columns) = weight.dims2()?;
        let values = ops::with_values(weight, <[f32]>::to_vec)?;
        Ok(Self { layer: layer.clone(), rows, columns, values })
    }

    /// The weight as a tensor, outputs x inputs.
    pub(crate) fn tensor(&self, device: &Device) -> Result<Tensor> {
        let weight = Tensor::from_slice(&self.values, (self.rows, self.columns), &Device::Cpu)?;
        Ok(to_device(&weight, device)?)
    }
}

/// A weight to prune.
#[derive(Clone, Debug)]
pub struct ToPrune {
    /// The layer's checkpoint name.
    pub layer: LayerName,
    /// Outputs x inputs, in `f32`, where the statistics are.
    pub weight: Tensor,
    /// The pattern of its zeros.
    pub pattern: Pattern,
}

impl ToPrune {
    /// Lets `body` change the numbers in memory: row by row, with the number of columns.
    pub(crate) fn change(&mut self, body: impl FnOnce(&mut [f32], usize)) -> Result<()> {
        let columns = self.weight.dim(1)?;
        let mut values = ops::with_values(&self.weight, <[f32]>::to_vec)?;
        body(&mut values, columns);
        let changed = Tensor::from_vec(values, self.weight.shape(), &Device::Cpu)?;
        self.weight = to_device(&changed, self.weight.device())?;
        Ok(())
    }
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
    fn prune(&self, layers: &mut [ToPrune], statistics: &InputStatistics) -> Result<Solved>;

    /// Bytes that [`Method::prune`] needs besides weights and statistics, for layers of at most
    /// `rows` x `columns`.
    fn scratch(&self, rows: usize, columns: usize) -> u64;
}
