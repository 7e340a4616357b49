//! Plain rules of the same multiply-accumulates.

use crate::error::Result;
use crate::learn::Learning;
use crate::scores::{Scores, Selection, kept};
use crate::select::Selected;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use secateur_models::{Pipeline, ReuseSchedule, Sampling, Structure};
use std::sync::Arc;

/// A way to little work.
#[derive(Clone, Debug)]
pub struct Way {
    /// What it is.
    pub name: String,
    /// The share of the whole run's multiply-accumulates.
    pub kept: f64,
    /// How to sample so.
    pub sampling: Sampling,
}

/// What [`evenly`] is called.
pub(crate) const EVENLY: &str = "calls evenly spread";
/// What [`first_unit`] is called.
pub(crate) const FIRST_UNIT: &str = "by the first block's change";

/// The schedules that were tried, the same as they are without a forecast, and what else needs no learning, with no more than the share
/// of the multiply-accumulates that is to be kept.
///
/// # Errors
/// If the model fails.
pub fn ways(pipeline: &Pipeline, tried: &[Selected], whole: &ReuseSchedule, learning: &Learning) -> Result<Vec<Way>> {
    let Learning { sampling, keep, .. } = learning;
    let folder = pipeline.folder();
    let structure = pipeline.structure(sampling);
    let way = |name: &str, schedule: ReuseSchedule| -> Result<Way> {
        let kept = kept(&schedule, &structure)?;
        let sampling = Sampling { reuse: Some(Arc::new(schedule)), ..sampling.clone() };
        Ok(Way { name: name.to_owned(), kept, sampling })
    };
    let mut ways: Vec<Way> = Vec::new();
    let plain = |tried: &Selected| ReuseSchedule { order: 0, ..tried.schedule.clone() };
    let plain = tried.iter().filter(|tried| tried.exchanges == 0).map(|tried| (tried.from.clone(), plain(tried)));
    let all: Vec<_> = tried.iter().map(|tried| (tried.to_string(), tried.schedule.clone())).chain(plain).collect();
    for (index, (name, schedule)) in all.iter().enumerate() {
        // Two ways to select may come to the same.
        if all[..index].iter().all(|(_, earlier)| earlier != schedule) {
            ways.push(way(name, schedule.clone())?);
        }
    }
    for steps in (1..sampling.steps).rev() {
        let sampling = Sampling { steps, ..sampling.clone() };
        // Some samplers need a number of steps.
        let Ok(schedule) = folder.schedule(sampling.latent, &sampling) else { break };
        let calls = schedule.calls().len();
        let share = calls as f64 / whole.computed.len() as f64;
        if share <= *keep {
            ways.push(Way { name: format!("fewer steps: {steps}"), kept: share, sampling });
            break;
        }
    }
    ways.push(way("random", random(whole, &structure, *keep, sampling.seed)?)?);
    Ok(ways)
}

/// All of some calls, evenly spread over the run, and nothing of the others: as many as keep no more than the share `wanted`.
///
/// # Errors
/// If the model has no such units.
pub fn evenly(whole: &ReuseSchedule, structure: &Structure, wanted: f64) -> Result<ReuseSchedule> {
    let calls = whole.computed.len();
    let most = (1..=calls).rev().find_map(|count| {
        let due = |call: usize| call == 0 || call * count / calls > (call - 1) * count / calls;
        let computed = (0..calls).map(|call| vec![due(call); whole.units.len()]).collect();
        let schedule = ReuseSchedule { computed, ..whole.clone() };
        match kept(&schedule, structure) {
            Ok(kept) if kept > wanted && count > 1 => None,
            result => Some(result.map(|_| schedule)),
        }
    });
    most.unwrap_or_else(|| Ok(whole.clone()))
}

/// By scores that mean nothing.
///
/// # Errors
/// If the model has no such units.
pub fn random(whole: &ReuseSchedule, structure: &Structure, wanted: f64, seed: u64) -> Result<ReuseSchedule> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let rows = whole.computed.iter().map(|row| row.iter().map(|_| random.random::<f64>()).collect());
    Scores(rows.collect()).select(Selection::Bisection, whole, structure, wanted)
}

/// First-block caching (as in ParaAttention and cache-dit): a call is computed when what the first unit makes has changed by a
/// threshold, relative to its size, since the last computed one. `changes` has that change from each call to the next, as
/// measured on some runs, and the threshold is the lowest that keeps no more than the share `wanted`.
///
/// # Errors
/// If the model has no such units.
pub fn first_unit(whole: &ReuseSchedule, structure: &Structure, wanted: f64, changes: &[f64]) -> Result<ReuseSchedule> {
    let at = |threshold: f64| {
        let mut since = f64::INFINITY;
        let computed = (0..whole.computed.len()).map(|call| {
            since += call.checked_sub(1).and_then(|before| changes.get(before)).copied().unwrap_or(0.0);
            let due = since >= threshold;
            since = if due { 0.0 } else { since };
            vec![due; whole.units.len()]
        });
        ReuseSchedule { computed: computed.collect(), ..whole.clone() }
    };
    let (mut low, mut high) = (0.0, changes.iter().sum::<f64>() + 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        match kept(&at(middle), structure)? <= wanted {
            true => high = middle,
            false => low = middle,
        }
    }
    Ok(at(high))
}
