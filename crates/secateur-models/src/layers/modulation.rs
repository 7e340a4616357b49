//! Adaptive layer norm: shifts, scales and gates for the tokens of each sample.

use crate::error::Result;
use candle_core::Tensor;
use secateur_nn::{Context, Linear, ops};

/// Shifts, scales and gates by index: samples x parts x width.
pub(crate) struct Modulation(Tensor);

impl Modulation {
    /// Computes the parts by a linear over `time` (samples x width).
    pub(crate) fn new(linear: &Linear, time: &Tensor, context: &Context<'_>) -> Result<Self> {
        let (samples, width) = time.dims2()?;
        Ok(Self(linear.forward(time, context)?.reshape((samples, (), width))?))
    }

    /// Adds a `table` (parts x width) of constants to the parts that all tables share.
    pub(crate) fn of_table(table: &Tensor, shared: &Self) -> Result<Self> {
        Ok(Self(table.broadcast_add(&shared.0)?))
    }

    /// The single part (samples x width) that every row of a table shares.
    pub(crate) fn of_part(part: &Tensor) -> Result<Self> {
        Ok(Self(part.unsqueeze(1)?))
    }

    fn part(&self, index: usize) -> Result<Tensor> {
        Ok(self.0.narrow(1, index, 1)?.squeeze(1)?)
    }

    /// Layer norm of `x` (samples x tokens x width), times 1 + part `scale`, plus part `shift`.
    pub(crate) fn norm(&self, x: &Tensor, shift: usize, scale: usize, eps: f32) -> Result<Tensor> {
        let _span = tracing::trace_span!("norm").entered();
        Ok(ops::layer_norm_modulated(x, &self.part(scale)?, &self.part(shift)?, eps)?)
    }

    /// `x` plus part `gate` times `y`.
    pub(crate) fn gated(&self, x: Tensor, gate: usize, y: Tensor) -> Result<Tensor> {
        let _span = tracing::trace_span!("residual").entered();
        Ok(ops::gated_add(&x, &self.part(gate)?, &y)?)
    }
}
