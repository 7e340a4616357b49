//! Takes over what a schedule says, while a model runs.

use crate::error::Result;
use crate::reuse::forecast::{Made, Past};
use crate::reuse::schedule::{ReuseSchedule, Row};
use crate::structure::Structure;
use candle_core::Tensor;
use secateur_nn::{Gates, Passage};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Takes over what the schedule of a run says.
pub struct Reuse {
    schedule: Arc<ReuseSchedule>,
    /// Of each call, whose output is read.
    read: Vec<Row>,
    call: Cell<usize>,
    timestep: Cell<f64>,
    /// Of each unit.
    past: RefCell<Vec<Past>>,
}

impl Reuse {
    /// For a run of that schedule, of a model with that structure.
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

    /// With what units made in another run.
    pub(crate) fn remembering(self, other: &Self) -> Self {
        Self { past: other.past.clone(), ..self }
    }

    /// The next forward is that of call `call`.
    pub fn begin(&self, call: usize, timestep: f32) {
        self.call.set(call);
        self.timestep.set(timestep.into());
    }

    /// What each unit made so far.
    #[must_use]
    pub fn past(&self) -> Vec<Past> {
        self.past.borrow().clone()
    }

    fn unit(&self, stretch: &str) -> Option<usize> {
        self.schedule.units.iter().position(|unit| unit == stretch)
    }

    /// What stands in for what a unit would make now.
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
