//! Stretches of a denoiser that are not computed at some calls of a run, but taken over from the calls before (DiP-GO, Zhu et
//! al. 2024, arXiv 2410.16942).

use crate::error::{Error, Result};
use crate::files::{Limit, read_json};
use crate::folder::ModelFolder;
use crate::options::read_fields;
use crate::pipeline::Sampling;
use crate::scheduler::{MOST_STEPS, Sampler};
use crate::structure::{Reader, Structure, Unit};
use candle_core::Tensor;
use secateur_nn::{Gates, Passage};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// What is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The output of a block, with all that is kept of it for later blocks. What feeds only such blocks is not computed either.
    Block,
    /// The output of a finer part of a UNet: a residual block with its attention.
    Branch,
    /// What a transformer block adds to its input.
    Residual,
}

/// Of each unit, whether it is computed.
type Row = Vec<bool>;

/// Which units are computed at which call of a run, for one sampler and number of steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReuseSchedule {
    /// What is taken over.
    pub kind: Kind,
    /// The sampler.
    pub sampler: Sampler,
    /// Its steps.
    pub steps: usize,
    /// Names of the units, in execution order.
    pub units: Vec<String>,
    /// Of what is taken over: 0 is what was made last, n the polynomial of degree n in the timestep through the last n + 1 that were made,
    /// or as many as there are (after TaylorSeer, Liu et al. 2025, arXiv 2503.06923, and at order 1 the same).
    pub order: usize,
    /// Calls of the denoiser x units. At the first call all are computed.
    pub computed: Vec<Row>,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct File {
    format_version: u32,
    kind: Kind,
    sampler: String,
    steps: usize,
    units: Vec<String>,
    #[serde(default)]
    order: usize,
    /// A digit a unit, 1 where it is computed.
    calls: Vec<String>,
}

const FORMAT_VERSION: u32 = 2;
/// Polynomials of a higher degree say nothing of what comes next.
const HIGHEST_ORDER: usize = 3;

/// All kinds with their names.
const KINDS: [(Kind, &str); 3] = [(Kind::Block, "block"), (Kind::Branch, "branch"), (Kind::Residual, "residual")];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KINDS.iter().find(|(kind, _)| kind == self).map_or("", |(_, name)| name))
    }
}

impl Kind {
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

impl FromStr for Kind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = KINDS.into_iter().find(|(_, known)| *known == name).map(|(kind, _)| kind);
        found
            .ok_or_else(|| Error::Request(format!("there is no kind of unit {name:?}: block, branch and residual are")))
    }
}

impl Structure {
    /// The units of a kind, in execution order.
    ///
    /// # Errors
    /// If the model has none.
    pub fn units_of(&self, kind: Kind) -> Result<&[Unit]> {
        let units = match kind {
            Kind::Residual if !self.residual => &[],
            Kind::Block | Kind::Residual => self.units.as_slice(),
            Kind::Branch => self.branches.as_slice(),
        };
        match units {
            [] => Err(Error::Request(format!(
                "the model has no units of the kind {kind}: its blocks change their input's shape"
            ))),
            units => Ok(units),
        }
    }

    /// Which units of a kind have to be computed where those of `wanted` are not to be taken over: not those that feed only
    /// units that are not computed.
    ///
    /// # Errors
    /// As [`Structure::units_of`].
    pub fn live(&self, kind: Kind, wanted: &[bool]) -> Result<Row> {
        let mut live = wanted.to_vec();
        if kind == Kind::Residual {
            return Ok(live);
        }
        let readers = self.readers(self.units_of(kind)?);
        for unit in (0..live.len()).rev() {
            live[unit] &= is_read(&readers[unit], &live);
        }
        Ok(live)
    }

    /// Of which units of a kind anything reads the output where those of `computed` are computed.
    fn read(&self, kind: Kind, computed: &[bool]) -> Result<Row> {
        let units = self.units_of(kind)?;
        Ok(match kind {
            Kind::Residual => vec![true; units.len()],
            Kind::Block | Kind::Branch => {
                self.readers(units).iter().map(|readers| is_read(readers, computed)).collect()
            }
        })
    }
}

fn is_read(readers: &BTreeSet<Reader>, computed: &[bool]) -> bool {
    readers.iter().any(|reader| match *reader {
        Reader::Output => true,
        Reader::Unit(reader) => computed[reader],
    })
}

impl ReuseSchedule {
    /// With everything computed.
    ///
    /// # Errors
    /// If the model has no such units, or the sampler cannot make so many steps.
    pub fn whole(folder: &ModelFolder, sampling: &Sampling, kind: Kind) -> Result<Self> {
        let units: Vec<String> =
            folder.structure(sampling).units_of(kind)?.iter().map(|unit| unit.name.clone()).collect();
        let calls = folder.schedule(sampling.latent, sampling)?.calls().len();
        let computed = vec![vec![true; units.len()]; calls];
        Ok(Self { kind, sampler: sampling.sampler, steps: sampling.steps, units, order: 0, computed })
    }

    /// Without the units that feed only such as are not computed.
    ///
    /// # Errors
    /// As [`Structure::live`].
    pub fn live(mut self, structure: &Structure) -> Result<Self> {
        for row in &mut self.computed {
            *row = structure.live(self.kind, row)?;
        }
        Ok(self)
    }

    /// Multiply-accumulates of a run for one sample, without the doubling of guidance.
    ///
    /// # Errors
    /// If the model has no such units.
    pub fn macs(&self, structure: &Structure) -> Result<u64> {
        let units: Vec<u64> = structure.units_of(self.kind)?.iter().map(|unit| structure.unit_macs(unit)).collect();
        let always = structure.macs() - units.iter().sum::<u64>();
        let of_row = |row: &Row| {
            always + units.iter().zip(row).filter(|(_, computed)| **computed).map(|(macs, _)| macs).sum::<u64>()
        };
        Ok(self.computed.iter().map(of_row).sum())
    }

    /// For another number of steps or another sampler: each call is like the one at the same place of the run, from 0 for the
    /// first to 1 for the last, the earlier one of two that are as near.
    ///
    /// # Errors
    /// If the sampler cannot make so many steps.
    pub fn adapted(&self, folder: &ModelFolder, sampling: &Sampling) -> Result<Self> {
        let calls = folder.schedule(sampling.latent, sampling)?.calls().len();
        let (last, last_of_ours) = (self.computed.len().saturating_sub(1), calls.saturating_sub(1).max(1));
        // To the nearest, the earlier one of two.
        let place = |call: usize| (2 * call * last + last_of_ours - 1) / (2 * last_of_ours);
        let row = |call: usize| self.computed[place(call).min(last)].clone();
        let computed = (0..calls).map(row).collect();
        Ok(Self { sampler: sampling.sampler, steps: sampling.steps, computed, ..self.clone() })
    }

    /// Reads the file of a model with that structure.
    ///
    /// # Errors
    /// If it cannot be read, or does not fit the model or itself.
    pub fn open(path: &Path, structure: &Structure) -> Result<Self> {
        let file: File = read_fields(path, &read_json(path, Limit::Config)?)?;
        let invalid = |problem: String| Error::invalid(path, problem);
        if file.format_version > FORMAT_VERSION {
            let version = file.format_version;
            return Err(invalid(format!("format_version {version} is newer than this secateur; update it")));
        }
        if !(1..=MOST_STEPS).contains(&file.steps) {
            return Err(invalid(format!("steps {} must be 1 to {MOST_STEPS}", file.steps)));
        }
        let sampler = file.sampler.parse().map_err(|error| invalid(format!("{error}")))?;
        let known = structure.units_of(file.kind).map_err(|error| invalid(format!("{error}")))?;
        if !known.iter().map(|unit| &unit.name).eq(&file.units) {
            let known: Vec<&str> = known.iter().map(|unit| unit.name.as_str()).collect();
            return Err(invalid(format!("units are not those of the model, {}", known.join(", "))));
        }
        if file.order > HIGHEST_ORDER {
            return Err(invalid(format!("order {} is more than {HIGHEST_ORDER}", file.order)));
        }
        let digit = |digit: char| match digit {
            '0' => Some(false),
            '1' => Some(true),
            _ => None,
        };
        let row = |(call, text): (usize, &String)| {
            let row: Option<Row> = text.chars().map(digit).collect();
            let row = row.filter(|row| row.len() == known.len());
            row.ok_or_else(|| {
                invalid(format!("calls[{call}] {text:?} is not a digit 0 or 1 for each of the {} units", known.len()))
            })
        };
        let computed = file.calls.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?;
        if !computed.first().is_some_and(|first| first.iter().all(|computed| *computed)) {
            return Err(invalid("the first call must compute all units: there is nothing to take over yet".into()));
        }
        Ok(Self { kind: file.kind, sampler, steps: file.steps, units: file.units, order: file.order, computed })
    }

    /// The text of the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn to_json(&self) -> Result<String> {
        let digits = |row: &Row| row.iter().map(|&computed| if computed { '1' } else { '0' }).collect();
        let file = File {
            format_version: FORMAT_VERSION,
            kind: self.kind,
            sampler: self.sampler.to_string(),
            steps: self.steps,
            units: self.units.clone(),
            order: self.order,
            calls: self.computed.iter().map(digits).collect(),
        };
        serde_json::to_string_pretty(&file).map(|text| text + "\n").map_err(|error| Error::Request(error.to_string()))
    }

    /// That it is for so many calls.
    pub(crate) fn check(&self, sampling: &Sampling, calls: usize) -> Result<()> {
        if self.sampler == sampling.sampler && self.computed.len() == calls {
            return Ok(());
        }
        Err(Error::Request(format!(
            "what the model skips was learned for {} with {} steps, not for {} with {}: sample as it was learned, or let \
             generate, compare or bench --adapt it, which takes the nearest of its steps for each",
            self.sampler, self.steps, sampling.sampler, sampling.steps
        )))
    }
}

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

/// What a unit made when it was last computed, the latest first.
#[derive(Clone, Debug, Default)]
pub struct Past(Vec<Made>);

/// What a unit made at a call.
#[derive(Clone, Debug)]
pub struct Made {
    /// The call, by its number.
    pub call: usize,
    /// Its timestep.
    pub timestep: f64,
    /// What was made.
    pub tensors: Vec<Tensor>,
}

impl Past {
    /// What the polynomial through it goes through, the latest first.
    #[must_use]
    pub fn made(&self) -> &[Made] {
        &self.0
    }

    /// What is known of it after something more was made, for a polynomial of degree `order`.
    pub fn push(&mut self, made: Made, order: usize) {
        // Some samplers call the denoiser twice at a timestep.
        self.0.retain(|earlier| earlier.timestep != made.timestep);
        self.0.insert(0, made);
        self.0.truncate(order + 1);
    }

    /// What all that was made is multiplied by in a forecast.
    #[must_use]
    pub fn weights(&self, timestep: f64) -> Vec<f64> {
        lagrange(&self.0.iter().map(|made| made.timestep).collect::<Vec<_>>(), timestep)
    }

    /// The polynomial at a timestep; nothing where nothing was made.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn forecast(&self, timestep: f64) -> candle_core::Result<Vec<Tensor>> {
        let Some(last) = self.0.first() else { return Ok(Vec::new()) };
        if self.0.len() == 1 {
            return Ok(last.tensors.clone());
        }
        let weights = self.weights(timestep);
        let sum = |index: usize| {
            let mut terms = self.0.iter().zip(&weights).map(|(made, &weight)| made.tensors[index].affine(weight, 0.0));
            let first = terms.next().unwrap_or_else(|| last.tensors[index].zeros_like())?;
            terms.try_fold(first, |sum, term| sum + term?)
        };
        (0..last.tensors.len()).map(sum).collect()
    }
}

impl Reuse {
    /// For a run of that schedule, of a model with that structure.
    ///
    /// # Errors
    /// If the model has no such units.
    pub fn new(schedule: Arc<ReuseSchedule>, structure: &Structure) -> Result<Self> {
        let read = schedule.computed.iter().map(|row| structure.read(schedule.kind, row)).collect::<Result<_>>()?;
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

/// What the values at `places` are multiplied by to give that of the polynomial through them at `place`.
fn lagrange(places: &[f64], place: f64) -> Vec<f64> {
    let factor = |(own, &at): (usize, &f64)| {
        let others = places.iter().enumerate().filter(|(other, _)| *other != own);
        others.map(|(_, &other)| (place - other) / (at - other)).product()
    };
    places.iter().enumerate().map(factor).collect()
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

    fn leave(&self, stretch: &str, inputs: &[Tensor], outputs: Vec<Tensor>) -> secateur_nn::Result<Vec<Tensor>> {
        if let Some(unit) = self.unit(stretch) {
            let tensors = self.schedule.kind.kept(inputs, &outputs)?;
            let made = Made { call: self.call.get(), timestep: self.timestep.get(), tensors };
            self.past.borrow_mut()[unit].push(made, self.schedule.order);
        }
        Ok(outputs)
    }
}
