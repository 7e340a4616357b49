//! The context of a forward pass: the denoising step, the probe that watches, and the gates.

use crate::error::{Error, Result};
use crate::name::LayerName;
use candle_core::Tensor;
use std::fmt;

/// A denoising step of the sampler. Some samplers call the model several times a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Index of the step; 0 is the first and noisiest.
    pub index: usize,
    /// Number of steps of the run.
    pub count: usize,
}

/// Watches the inputs of linear layers and convolutions; calibration is one implementation.
pub trait Probe {
    /// Called before the linear `layer` reads `x` (... x inputs).
    ///
    /// # Errors
    /// Ends the forward pass.
    fn linear_input(&self, layer: &LayerName, x: &Tensor, context: &Context<'_>) -> Result<()>;

    /// Called before the convolution `layer` reads `x` (samples x inputs x height x width). Does
    /// nothing unless implemented.
    ///
    /// # Errors
    /// Ends the forward pass.
    fn convolution_input(
        &self,
        _layer: &LayerName,
        _x: &Tensor,
        _context: &Context<'_>,
    ) -> Result<()> {
        Ok(())
    }
}

/// Decides of each gated block whether it runs or is replaced, for example by its earlier outputs.
/// A block is named by the common prefix of its layers' names in the checkpoint (`stretch`).
pub trait Gates {
    /// Called before the block `stretch` runs on `inputs`.
    ///
    /// # Errors
    /// Ends the forward pass.
    fn enter(&self, stretch: &str, inputs: &[Tensor]) -> Result<Passage>;

    /// Called after the block `stretch` ran, and made `outputs`. Returns the outputs that the model
    /// goes on with. `inputs` are those of [`Gates::enter`].
    ///
    /// # Errors
    /// Ends the forward pass.
    fn leave(&self, stretch: &str, inputs: &[Tensor], outputs: Vec<Tensor>) -> Result<Vec<Tensor>>;
}

/// Whether a gated block runs or is replaced.
#[derive(Clone, Debug)]
pub enum Passage {
    /// The block runs, on these inputs.
    Compute(Vec<Tensor>),
    /// The block does not run. These tensors replace its outputs.
    Instead(Vec<Tensor>),
}

/// The context of a forward pass. The default one watches nothing, gates nothing, and costs
/// nothing.
#[derive(Clone, Copy, Default)]
pub struct Context<'a> {
    /// The denoising step.
    pub step: Step,
    /// The probe that watches the inputs of layers, if any.
    pub probe: Option<&'a dyn Probe>,
    /// For each token of the layers' input, the number of equal tokens that it stands for, or 0 if
    /// no layer reads it: samples x tokens, `f32`. `None` if all are 1.
    pub multiplicity: Option<&'a Tensor>,
    /// The gates, if any.
    pub gates: Option<&'a dyn Gates>,
}

impl Context<'_> {
    /// Runs the block `compute` on `inputs`, or lets the gates replace its outputs. `stretch` names
    /// the block.
    ///
    /// # Errors
    /// If `compute` or a gate fails.
    pub fn gated<E: From<Error>>(
        &self,
        stretch: impl fmt::Display,
        inputs: Vec<Tensor>,
        compute: impl FnOnce(Vec<Tensor>) -> std::result::Result<Vec<Tensor>, E>,
    ) -> std::result::Result<Vec<Tensor>, E> {
        let Some(gates) = self.gates else { return compute(inputs) };
        let stretch = stretch.to_string();
        match gates.enter(&stretch, &inputs)? {
            Passage::Compute(given) => {
                let outputs = compute(given)?;
                Ok(gates.leave(&stretch, &inputs, outputs)?)
            }
            Passage::Instead(features) => Ok(features),
        }
    }

    /// As [`Context::gated`], for a block with as many outputs as inputs.
    ///
    /// # Errors
    /// If `compute` or a gate fails, or a gate gives another number of tensors.
    pub fn gated_array<const N: usize, E: From<Error>>(
        &self,
        stretch: impl fmt::Display,
        inputs: [Tensor; N],
        compute: impl FnOnce([Tensor; N]) -> std::result::Result<[Tensor; N], E>,
    ) -> std::result::Result<[Tensor; N], E> {
        if self.gates.is_none() {
            return compute(inputs);
        }
        let array = |tensors: Vec<Tensor>| {
            let count = tensors.len();
            let problem = format!("a gate gave {count} tensors instead of {N}");
            tensors
                .try_into()
                .map_err(|_| Error::Layer { layer: stretch.to_string().into(), problem })
        };
        let outputs =
            self.gated(&stretch, inputs.into(), |inputs| compute(array(inputs)?).map(Vec::from))?;
        Ok(array(outputs)?)
    }
}
