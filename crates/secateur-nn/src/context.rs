//! What is passed down a forward: the step, who watches, and gates.

use crate::error::{Error, Result};
use crate::name::LayerName;
use candle_core::Tensor;
use std::fmt;

/// A denoising step: of the sampler, not of the model calls, of which some samplers make several a
/// step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// 0 is the first, noisiest one.
    pub index: usize,
    /// Steps of the whole run.
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

/// Stands before stretches of a model, by the common prefix of their names in the checkpoint: some
/// are not computed, and what they made before is used again.
pub trait Gates {
    /// `inputs` are about to go through `stretch`.
    ///
    /// # Errors
    /// Ends the forward pass.
    fn enter(&self, stretch: &str, inputs: &[Tensor]) -> Result<Passage>;

    /// It made `outputs` of what went in; what goes on.
    ///
    /// # Errors
    /// Ends the forward pass.
    fn leave(&self, stretch: &str, inputs: &[Tensor], outputs: Vec<Tensor>) -> Result<Vec<Tensor>>;
}

/// What becomes of a stretch.
#[derive(Clone, Debug)]
pub enum Passage {
    /// It is computed, of these.
    Compute(Vec<Tensor>),
    /// It is not, and these stand in for its outputs.
    Instead(Vec<Tensor>),
}

/// What is passed down a forward; empty, it costs nothing.
#[derive(Clone, Copy, Default)]
pub struct Context<'a> {
    /// The denoising step under way.
    pub step: Step,
    /// Who watches, if anybody.
    pub probe: Option<&'a dyn Probe>,
    /// For how many equal tokens each token of the layers' input stands, 0 for one that nothing
    /// reads: samples x tokens numbers, where any is not 1.
    pub multiplicity: Option<&'a [f32]>,
    /// What stands before its stretches, if anything.
    pub gates: Option<&'a dyn Gates>,
}

impl Context<'_> {
    /// What `compute` makes of `inputs`, or what gates put in its place.
    ///
    /// # Errors
    /// If `compute` fails, or a gate.
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

    /// The same of a stretch that gives as many tensors as it takes.
    ///
    /// # Errors
    /// If `compute` fails, or a gate.
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
            let problem = format!("a gate gave {count} tensors in the place of {N}");
            tensors
                .try_into()
                .map_err(|_| Error::Layer { layer: stretch.to_string().into(), problem })
        };
        let outputs =
            self.gated(&stretch, inputs.into(), |inputs| compute(array(inputs)?).map(Vec::from))?;
        Ok(array(outputs)?)
    }
}
