//! Plain rules of the same multiply-accumulates.

use crate::error::Result;
use crate::scores::{Scores, Selection};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use secateur_models::{ReuseSchedule, Structure};

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
        match crate::scores::kept(&schedule, structure) {
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
        match crate::scores::kept(&at(middle), structure)? <= wanted {
            true => high = middle,
            false => low = middle,
        }
    }
    Ok(at(high))
}
