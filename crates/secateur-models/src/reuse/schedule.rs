//! Which units are computed at which call of a run.

use crate::error::{Error, Result};
use crate::files::{Limit, read_fields, read_json};
use crate::samplers::{MOST_STEPS, Sampler};
use crate::structure::{Structure, UnitKind};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Of each unit, whether it is computed.
pub(crate) type Row = Vec<bool>;

/// Which units are computed at which call of a run, for one sampler and number of steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReuseSchedule {
    /// What is taken over.
    pub kind: UnitKind,
    /// The sampler.
    pub sampler: Sampler,
    /// Its steps.
    pub steps: usize,
    /// Names of the units, in execution order.
    pub units: Vec<String>,
    /// Of what is taken over: 0 is what was made last, n the polynomial of degree n in the timestep
    /// through the last n + 1 that were made, or as many as there are (after TaylorSeer, Liu et al.
    /// 2025, arXiv 2503.06923, and at order 1 the same).
    pub order: usize,
    /// Calls of the denoiser x units. At the first call all are computed.
    pub computed: Vec<Row>,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct File {
    format_version: u32,
    kind: UnitKind,
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

impl ReuseSchedule {
    /// With everything computed at each of `calls` calls of the denoiser.
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

    /// For another number of steps or another sampler: each call is like the one at the same place
    /// of the run, from 0 for the first to 1 for the last, the earlier one of two that are as near.
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

    /// Reads the file of a model with that structure.
    ///
    /// # Errors
    /// If it cannot be read, or does not fit the model or itself.
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

    /// The text of the file.
    ///
    /// # Errors
    /// If it cannot be written.
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

    /// Fails where it is for another sampler or number of calls.
    pub(crate) fn check(&self, sampler: Sampler, steps: usize, calls: usize) -> Result<()> {
        if self.sampler == sampler && self.computed.len() == calls {
            return Ok(());
        }
        Err(Error::Request(format!(
            "what the model skips was learned for {} with {} steps, not for {} with {}: sample as \
             it was learned, or `adapt` it to take the nearest of its steps for each",
            self.sampler, self.steps, sampler, steps
        )))
    }
}
