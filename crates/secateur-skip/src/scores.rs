//! Schedules from scores.

use crate::error::Result;
use secateur_models::{ReuseSchedule, Structure};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The score of each unit at each call, in [0, 1] (calls x units). Units with high scores are
/// computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores(pub Vec<Vec<f64>>);

/// How a schedule is made from scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// The paper's selection: units with scores below a threshold are not computed. The threshold
    /// is found by bisection.
    #[default]
    Bisection,
    /// The released code's selection: units with the lowest scores are removed first, from the
    /// output on, each with all units that only it reads.
    Cascade,
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bisection => "bisection",
            Self::Cascade => "cascade",
        })
    }
}

/// Returns the share of a run's multiply-accumulates that a schedule keeps, in [0, 1].
///
/// # Errors
/// If the model does not have these units.
pub fn kept(schedule: &ReuseSchedule, structure: &Structure) -> Result<f64> {
    let whole = structure.macs() * schedule.computed.len() as u64;
    Ok(schedule.macs(structure)? as f64 / whole as f64)
}

impl Scores {
    /// Returns a schedule that keeps at most the share `wanted` of the multiply-accumulates, and as
    /// much of it as possible. `whole` computes everything.
    ///
    /// # Errors
    /// If the model does not have these units.
    pub fn select(
        &self,
        how: Selection,
        whole: &ReuseSchedule,
        structure: &Structure,
        wanted: f64,
    ) -> Result<ReuseSchedule> {
        match how {
            Selection::Bisection => self.bisection(whole, structure, wanted),
            Selection::Cascade => self.cascade(whole, structure, wanted),
        }
    }

    /// Returns the schedule without the units with scores below `threshold`, at all calls but the
    /// first, and without the units that only feed such units.
    ///
    /// # Errors
    /// If the model does not have these units.
    pub fn at(
        &self,
        threshold: f64,
        whole: &ReuseSchedule,
        structure: &Structure,
    ) -> Result<ReuseSchedule> {
        let row = |(call, scores): (usize, &Vec<f64>)| {
            scores.iter().map(|&score| call == 0 || score >= threshold).collect()
        };
        let computed = self.0.iter().enumerate().map(row).collect();
        Ok(ReuseSchedule { computed, ..whole.clone() }.live(structure)?)
    }

    fn bisection(
        &self,
        whole: &ReuseSchedule,
        structure: &Structure,
        wanted: f64,
    ) -> Result<ReuseSchedule> {
        // A schedule changes at scores alone.
        let mut thresholds: Vec<f64> = self.0.iter().skip(1).flatten().copied().collect();
        thresholds.sort_by(f64::total_cmp);
        thresholds.dedup();
        thresholds.push(f64::INFINITY);
        // The first that keeps little enough: a higher one keeps no more.
        let (mut low, mut high) = (0, thresholds.len() - 1);
        while low < high {
            let middle = (low + high) / 2;
            match kept(&self.at(thresholds[middle], whole, structure)?, structure)? <= wanted {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        self.at(thresholds[low], whole, structure)
    }

    fn cascade(
        &self,
        whole: &ReuseSchedule,
        structure: &Structure,
        wanted: f64,
    ) -> Result<ReuseSchedule> {
        let mut schedule = whole.clone();
        let calls = schedule.computed.len();
        // P(taken over) of at least 0.95, 0.90, and so on.
        for threshold in (1..=20).map(|twentieths| f64::from(twentieths) * 0.05) {
            for unit in (0..schedule.units.len()).rev() {
                let mut order: Vec<usize> =
                    (1..calls).filter(|&call| self.0[call][unit] <= threshold).collect();
                order.sort_by(|&a, &b| self.0[a][unit].total_cmp(&self.0[b][unit]));
                for call in order {
                    if !schedule.computed[call][unit] {
                        continue;
                    }
                    schedule.computed[call][unit] = false;
                    schedule.computed[call] =
                        structure.live(schedule.kind, &schedule.computed[call])?;
                    if kept(&schedule, structure)? <= wanted {
                        return Ok(schedule);
                    }
                }
            }
        }
        Ok(schedule)
    }
}

/// Returns gamma of each unit: the share of all units' multiply-accumulates that the unit takes,
/// with all units that only it reads.
///
/// # Errors
/// If the model does not have these units.
pub(crate) fn cascades(schedule: &ReuseSchedule, structure: &Structure) -> Result<Vec<f64>> {
    let units = structure.units_of(schedule.kind)?;
    let macs: Vec<u64> = units.iter().map(|unit| structure.unit_macs(unit)).collect();
    let all: u64 = macs.iter().sum();
    let without = |unit: usize| {
        let mut wanted = vec![true; units.len()];
        wanted[unit] = false;
        let live = structure.live(schedule.kind, &wanted)?;
        let gone =
            macs.iter().zip(&live).filter(|(_, live)| !**live).map(|(macs, _)| macs).sum::<u64>();
        Ok(gone as f64 / all.max(1) as f64)
    };
    (0..units.len()).map(without).collect()
}
