//! Plain rules that choose calls to compute, without learning.

use crate::error::Result;
use crate::scores::{Scores, Selection, kept};
use crate::settings::Learning;
use crate::supernet::SuperNet;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use secateur_models::{Observer, Pipeline, ReuseSchedule, Structure};

/// The name of [`evenly`] in reports.
pub(crate) const EVENLY: &str = "calls evenly spread";

/// Number of pictures on which changes of the first unit are measured.
const WATCHED: usize = 2;

/// The name of [`first_unit`] in reports.
pub(crate) const FIRST_UNIT: &str = "by the first block's change";

/// Returns the relative difference between the first unit's outputs at each pair of calls, on a few
/// pictures: see [`Run::changes`](crate::Run::changes).
pub(crate) fn changes(
    pipeline: &Pipeline,
    whole: &ReuseSchedule,
    learning: &Learning,
    observer: &dyn Observer,
) -> Result<Vec<Vec<f64>>> {
    let Learning { prompts, sampling, .. } = learning;
    let watched = 0..prompts.len().min(WATCHED);
    let conditioning =
        pipeline.guided_conditioning(&prompts[watched.clone()], sampling.latent, sampling)?;
    let advance = || Ok(observer.advance(0)?);
    SuperNet::new(pipeline, sampling, whole).run(&conditioning, watched, advance)?.changes(0)
}

/// Returns a schedule that computes some calls whole, evenly spread over the run, and only the
/// units `always` at the others. It has as many whole calls as keep at most the share `wanted`.
///
/// # Errors
/// If the model does not have these units.
pub fn evenly(
    whole: &ReuseSchedule,
    structure: &Structure,
    wanted: f64,
    always: &[usize],
) -> Result<ReuseSchedule> {
    let calls = whole.computed.len();
    let of = |count: usize| {
        let due = |call: usize| call == 0 || call * count / calls > (call - 1) * count / calls;
        let computed = (0..calls).map(|call| row(whole, due(call), always)).collect();
        ReuseSchedule { computed, ..whole.clone() }.live(structure)
    };
    for count in (2..=calls).rev() {
        let schedule = of(count)?;
        if kept(&schedule, structure)? <= wanted {
            return Ok(schedule);
        }
    }
    Ok(of(1)?)
}

/// Returns a schedule by random scores.
///
/// # Errors
/// If the model does not have these units.
pub fn random(
    whole: &ReuseSchedule,
    structure: &Structure,
    wanted: f64,
    seed: u64,
) -> Result<ReuseSchedule> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let rows =
        whole.computed.iter().map(|row| row.iter().map(|_| random.random::<f64>()).collect());
    Scores(rows.collect()).select(Selection::Bisection, whole, structure, wanted)
}

/// Returns a schedule by the changes of the first unit. A call is computed whole if the output of
/// the first unit has changed by at least a threshold since the last whole call. Otherwise only the
/// units `always` are computed. `since` has the change from one call to another. The threshold is
/// the lowest that keeps at most the share `wanted`.
///
/// # Errors
/// If the model does not have these units.
pub fn first_unit(
    whole: &ReuseSchedule,
    structure: &Structure,
    wanted: f64,
    always: &[usize],
    since: impl Fn(usize, usize) -> f64,
) -> Result<ReuseSchedule> {
    let calls = whole.computed.len();
    let due = |threshold: f64| {
        let mut last = 0;
        let due = (0..calls).map(|call| {
            let due = call == 0 || since(last, call) >= threshold;
            last = if due { call } else { last };
            due
        });
        due.collect::<Vec<_>>()
    };
    let pairs = (0..calls).flat_map(|last| (last + 1..calls).map(move |call| (last, call)));
    let mut thresholds: Vec<f64> =
        pairs.map(|(last, call)| since(last, call)).chain([f64::INFINITY]).collect();
    thresholds.sort_by(f64::total_cmp);
    thresholds.dedup();
    // As many whole calls keep as much, whichever they are.
    let mut too_many = calls + 1;
    let mut schedule = whole.clone();
    for due in thresholds.into_iter().map(due) {
        let count = due.iter().filter(|&&due| due).count();
        if count >= too_many {
            continue;
        }
        let computed = due.into_iter().map(|due| row(whole, due, always)).collect();
        schedule = ReuseSchedule { computed, ..whole.clone() }.live(structure)?;
        if kept(&schedule, structure)? <= wanted {
            break;
        }
        too_many = count;
    }
    Ok(schedule)
}

/// Returns a call's row: everything if `due`, otherwise only the units `always`.
fn row(whole: &ReuseSchedule, due: bool, always: &[usize]) -> Vec<bool> {
    (0..whole.units.len()).map(|unit| due || always.contains(&unit)).collect()
}
