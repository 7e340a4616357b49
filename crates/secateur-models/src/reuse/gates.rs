//! Gates that follow a reuse schedule while a model runs.

use crate::error::Result;
use crate::reuse::forecast::{Made, Past};
use crate::reuse::schedule::{ReuseSchedule, Row};
use crate::structure::Structure;
use candle_core::Tensor;
use secateur_nn::{Gates, Passage};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Gates of one run, which skip units by a schedule and replace their outputs by forecasts.
pub struct Reuse {
    schedule: Arc<ReuseSchedule>,
    /// For each call and unit, whether any layer reads the unit's output.
    read: Vec<Row>,
    call: Cell<usize>,
    timestep: Cell<f64>,
    /// Earlier outputs of each unit.
    past: RefCell<Vec<Past>>,
}

impl Reuse {
    /// Makes the gates for a run by `schedule`, of a model with that structure.
    ///
    /// # Errors
    /// If the model has no such units.
    pub fn new(schedule: Arc<ReuseSchedule>, structure: &Structure) -> Result<Self> {
        let read = schedule
            .computed
            .iter()
            .map(|row| structure.read(schedule.kind, row))
            .collect::<Result<_>>()?;
        let past = RefCell::new(vec![Past::default(); schedule.units.len()]);
        Ok(Self { schedule, read, call: Cell::new(0), timestep: Cell::new(0.0), past })
    }

    /// Takes over the earlier outputs from another run.
    pub(crate) fn remembering(self, other: &Self) -> Self {
        Self { past: other.past.clone(), ..self }
    }

    /// Announces the next forward pass: call number `call`, at `timestep`.
    pub fn begin(&self, call: usize, timestep: f32) {
        self.call.set(call);
        self.timestep.set(timestep.into());
    }

    /// The earlier outputs of each unit.
    #[must_use]
    pub fn past(&self) -> Vec<Past> {
        self.past.borrow().clone()
    }

    fn unit(&self, stretch: &str) -> Option<usize> {
        self.schedule.units.iter().position(|unit| unit == stretch)
    }

    /// The forecast that replaces the output of a unit.
    fn taken_over(&self, unit: usize, past: &Past) -> candle_core::Result<Vec<Tensor>> {
        match past.made() {
            [last, ..] if !self.read[self.call.get()][unit] => Ok(last.tensors.clone()),
            _ => past.forecast(self.timestep.get()),
        }
    }
}

impl Gates for Reuse {
    fn enter(&self, stretch: &str, inputs: &[Tensor]) -> secateur_nn::Result<Passage> {
        let compute = || Passage::Compute(inputs.to_vec());
        let Some(unit) = self.unit(stretch) else { return Ok(compute()) };
        let past = &self.past.borrow()[unit];
        if past.made().is_empty() || self.schedule.computed[self.call.get()][unit] {
            return Ok(compute());
        }
        Ok(Passage::Instead(self.schedule.kind.outputs(inputs, self.taken_over(unit, past)?)?))
    }

    fn leave(
        &self,
        stretch: &str,
        inputs: &[Tensor],
        outputs: Vec<Tensor>,
    ) -> secateur_nn::Result<Vec<Tensor>> {
        if let Some(unit) = self.unit(stretch) {
            let tensors = self.schedule.kind.kept(inputs, &outputs)?;
            let made = Made { call: self.call.get(), timestep: self.timestep.get(), tensors };
            self.past.borrow_mut()[unit].push(made, self.schedule.order);
        }
        Ok(outputs)
    }
}
