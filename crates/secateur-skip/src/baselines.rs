//! Plain rules of the same multiply-accumulates.

use crate::error::Result;
use crate::learn::Learning;
use crate::scores::{Scores, Selection, kept};
use crate::select::Selected;
use crate::supernet::SuperNet;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use secateur_models::{Observer, Pipeline, ReuseSchedule, Sampling, Structure, UnitKind};
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
/// Pictures by whose changes the first unit tells when to compute.
const WATCHED: usize = 2;
/// What [`first_unit`] is called.
pub(crate) const FIRST_UNIT: &str = "by the first block's change";

/// The schedules that were tried, the same as they are without a forecast, and what else needs no learning, with no more than the share
/// of the multiply-accumulates that is to be kept.
///
/// # Errors
/// If the model fails, or the observer interrupts.
pub fn ways(
    pipeline: &Pipeline,
    tried: &[Selected],
    whole: &ReuseSchedule,
    learning: &Learning,
    observer: &dyn Observer,
) -> Result<Vec<Way>> {
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
    let (name, cached) = cache(pipeline, learning, observer)?;
    for (order, name) in [(0, name.to_owned()), (1, format!("{name}, order 1"))] {
        let schedule = ReuseSchedule { order, ..cached.clone() };
        if kept(&schedule, &structure)? <= *keep {
            ways.push(way(&name, schedule)?);
        }
    }
    ways.push(way("random", random(whole, &structure, *keep, sampling.seed)?)?);
    Ok(ways)
}

/// How far what the first unit makes at a call is from what it makes at each later one, on a few pictures: see
/// [`Run::changes`](crate::Run::changes).
pub(crate) fn changes(
    pipeline: &Pipeline,
    whole: &ReuseSchedule,
    learning: &Learning,
    observer: &dyn Observer,
) -> Result<Vec<Vec<f64>>> {
    let Learning { prompts, sampling, .. } = learning;
    let watched = 0..prompts.len().min(WATCHED);
    let conditioning = pipeline.guided_conditioning(&prompts[watched.clone()], sampling.latent, sampling)?;
    let advance = || Ok(observer.advance(0)?);
    SuperNet::new(pipeline, sampling, whole).run(&conditioning, watched, advance)?.changes(0)
}

/// What the field caches by rules of its own, to be taken over as it was: what is behind the first block of a transformer (FBCache of
/// ParaAttention and diffusers, which has no warm-up), or below the outermost skip connection of a UNet, so that only its last branch is
/// computed (DeepCache, Ma et al. 2024, arXiv 2312.00858). More than the share that is to be kept, where these alone are more.
fn cache(pipeline: &Pipeline, learning: &Learning, observer: &dyn Observer) -> Result<(&'static str, ReuseSchedule)> {
    let Learning { sampling, keep, .. } = learning;
    let structure = pipeline.structure(sampling);
    let whole = |kind: UnitKind| pipeline.folder().whole_reuse(sampling, kind);
    Ok(if structure.residual {
        let whole = whole(UnitKind::Residual)?;
        let changes = changes(pipeline, &whole, learning, observer)?;
        let since = |last: usize, call: usize| changes[last][call];
        ("first-block cache", first_unit(&whole, &structure, *keep, &[0], since)?)
    } else {
        let whole = whole(UnitKind::Branch)?;
        ("DeepCache", evenly(&whole, &structure, *keep, &[whole.units.len() - 1])?)
    })
}

/// All of some calls, evenly spread over the run, and the units `always` of the others: as many as keep no more than the share `wanted`.
///
/// # Errors
/// If the model has no such units.
pub fn evenly(whole: &ReuseSchedule, structure: &Structure, wanted: f64, always: &[usize]) -> Result<ReuseSchedule> {
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

/// By scores that mean nothing.
///
/// # Errors
/// If the model has no such units.
pub fn random(whole: &ReuseSchedule, structure: &Structure, wanted: f64, seed: u64) -> Result<ReuseSchedule> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let rows = whole.computed.iter().map(|row| row.iter().map(|_| random.random::<f64>()).collect());
    Scores(rows.collect()).select(Selection::Bisection, whole, structure, wanted)
}

/// By what the first unit makes: all of a call is computed where that has changed by a threshold at least since the last such call,
/// otherwise the units `always`; `since` has the change from one call to another. The threshold is the lowest that keeps no more than the
/// share `wanted`.
///
/// # Errors
/// If the model has no such units.
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
    let mut thresholds: Vec<f64> = pairs.map(|(last, call)| since(last, call)).chain([f64::INFINITY]).collect();
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

/// A call that is computed whole, or one of which only the units `always` are.
fn row(whole: &ReuseSchedule, due: bool, always: &[usize]) -> Vec<bool> {
    (0..whole.units.len()).map(|unit| due || always.contains(&unit)).collect()
}
