//! Schedules of reuse: which units run at which call of a run.

use crate::error::{Error, Result, refuse};
use crate::files::{Limit, read_fields, read_json};
use crate::samplers::{MOST_STEPS, Sampler};
use crate::structure::{Structure, UnitKind};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// For each unit, whether it runs.
pub(crate) type Row = Vec<bool>;

/// Which units run at which call of a run, for one sampler and number of steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReuseSchedule {
    /// What a unit that does not run reuses.
    pub kind: UnitKind,
    /// The sampler.
    pub sampler: Sampler,
    /// Number of denoising steps.
    pub steps: usize,
    /// Names of the units, in execution order.
    pub units: Vec<String>,
    /// Order of the forecast that replaces a unit's output. Order 0 repeats the last output. Order
    /// n extrapolates the last n + 1 outputs, or as many as there are, by a polynomial of degree n
    /// in the timestep. This is after TaylorSeer (Liu et al. 2025, arXiv 2503.06923), and equals it
    /// at order 1.
    pub order: usize,
    /// Whether each unit runs: calls of the denoiser x units. All units run at the first call.
    pub computed: Vec<Row>,
}

/// The file of a schedule.
#[derive(Serialize, Deserialize)]
struct File {
    format_version: u32,
    kind: UnitKind,
    sampler: String,
    steps: usize,
    units: Vec<String>,
    #[serde(default)]
    order: usize,
    /// For each call, one digit per unit: 1 if it runs.
    calls: Vec<String>,
}

const FORMAT_VERSION: u32 = 2;

/// A polynomial of a higher degree does not predict the next outputs.
const HIGHEST_ORDER: usize = 3;

impl ReuseSchedule {
    /// The schedule that runs every unit at each of `calls` calls of the denoiser.
    ///
    /// # Errors
    /// If the model has no such units.
    pub(crate) fn whole(
        structure: &Structure,
        kind: UnitKind,
        sampler: Sampler,
        steps: usize,
        calls: usize,
    ) -> Result<Self> {
        let units: Vec<String> =
            structure.units_of(kind)?.iter().map(|unit| unit.name.clone()).collect();
        let computed = vec![vec![true; units.len()]; calls];
        Ok(Self { kind, sampler, steps, units, order: 0, computed })
    }

    /// Also skips the units that only skipped units read.
    ///
    /// # Errors
    /// As [`Structure::live`].
    pub fn live(mut self, structure: &Structure) -> Result<Self> {
        for row in &mut self.computed {
            *row = structure.live(self.kind, row)?;
        }
        Ok(self)
    }

    /// Multiply-accumulates of a run for one sample. Guidance, which doubles the samples, is not
    /// counted.
    ///
    /// # Errors
    /// If the model has no such units.
    pub fn macs(&self, structure: &Structure) -> Result<u64> {
        let units: Vec<u64> =
            structure.units_of(self.kind)?.iter().map(|unit| structure.unit_macs(unit)).collect();
        let always = structure.macs() - units.iter().sum::<u64>();
        let of_row = |row: &Row| {
            always
                + units
                    .iter()
                    .zip(row)
                    .filter(|(_, computed)| **computed)
                    .map(|(macs, _)| macs)
                    .sum::<u64>()
        };
        Ok(self.computed.iter().map(of_row).sum())
    }

    /// Adapts the schedule to another sampler or number of steps. Each new call takes the row of
    /// the call at the nearest place in the run, from 0 for the first call to 1 for the last. Of
    /// two that are equally near it takes the earlier.
    #[must_use]
    pub fn adapted(&self, sampler: Sampler, steps: usize, calls: usize) -> Self {
        let (last, last_of_ours) =
            (self.computed.len().saturating_sub(1), calls.saturating_sub(1).max(1));
        // To the nearest, the earlier one of two.
        let place = |call: usize| (2 * call * last + last_of_ours - 1) / (2 * last_of_ours);
        let row = |call: usize| self.computed[place(call).min(last)].clone();
        let computed = (0..calls).map(row).collect();
        Self { sampler, steps, computed, ..self.clone() }
    }

    /// Reads the schedule of a model with that structure from a file.
    ///
    /// # Errors
    /// If the file cannot be read, contradicts itself, or does not fit the model.
    pub fn open(path: &Path, structure: &Structure) -> Result<Self> {
        let file: File = read_fields(path, &read_json(path, Limit::Config)?)?;
        let invalid = |problem: String| Error::invalid(path, problem);
        if file.format_version > FORMAT_VERSION {
            let version = file.format_version;
            return Err(invalid(format!(
                "format_version {version} is newer than this secateur; update it"
            )));
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
                invalid(format!(
                    "calls[{call}] {text:?} is not a digit 0 or 1 for each of the {} units",
                    known.len()
                ))
            })
        };
        let computed = file.calls.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?;
        if !computed.first().is_some_and(|first| first.iter().all(|computed| *computed)) {
            return Err(invalid(
                "the first call must compute all units: there is nothing to take over yet".into(),
            ));
        }
        Ok(Self {
            kind: file.kind,
            sampler,
            steps: file.steps,
            units: file.units,
            order: file.order,
            computed,
        })
    }

    /// The content of the file of this schedule.
    ///
    /// # Errors
    /// If it cannot be serialised.
    pub fn to_json(&self) -> Result<String> {
        let digits =
            |row: &Row| row.iter().map(|&computed| if computed { '1' } else { '0' }).collect();
        let file = File {
            format_version: FORMAT_VERSION,
            kind: self.kind,
            sampler: self.sampler.to_string(),
            steps: self.steps,
            units: self.units.clone(),
            order: self.order,
            calls: self.computed.iter().map(digits).collect(),
        };
        serde_json::to_string_pretty(&file)
            .map(|text| text + "\n")
            .map_err(|error| Error::Request(error.to_string()))
    }

    /// Fails if the schedule is for another sampler or number of calls.
    pub(crate) fn check(&self, sampler: Sampler, steps: usize, calls: usize) -> Result<()> {
        if self.sampler == sampler && self.computed.len() == calls {
            return Ok(());
        }
        refuse!(
            "what the model skips was learned for {} with {} steps, not for {} with {}: sample as \
             it was learned, or `adapt` it to take the nearest of its steps for each",
            self.sampler,
            self.steps,
            sampler,
            steps
        )
    }
}
