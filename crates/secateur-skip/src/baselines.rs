//! Plain rules with the same number of multiply-accumulates.

use crate::error::Result;
use crate::rules::{changes, evenly, first_unit, random};
use crate::scores::kept;
use crate::select::Selected;
use crate::settings::Learning;
use secateur_models::{Observer, Pipeline, ReuseSchedule, Sampling, UnitKind};
use std::sync::Arc;

/// A way to sample with less work.
#[derive(Clone, Debug)]
pub struct Way {
    /// Its name in the report.
    pub name: String,
    /// Its share of the multiply-accumulates of the whole run, in (0, 1].
    pub kept: f64,
    /// The sampling that does so.
    pub sampling: Sampling,
}

/// Returns the ways to compare, each with at most the share of the multiply-accumulates in
/// `learning`: the schedules that were tried, the same schedules without a forecast, and others
/// that need no learning.
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
    let plain = tried
        .iter()
        .filter(|tried| tried.exchanges == 0)
        .map(|tried| (tried.from.clone(), plain(tried)));
    let all: Vec<_> = tried
        .iter()
        .map(|tried| (tried.to_string(), tried.schedule.clone()))
        .chain(plain)
        .collect();
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

/// Caches of other tools, with their own rules of what to compute. Cached outputs are reused
/// without a forecast: all behind the first block of a transformer (FBCache of ParaAttention and
/// diffusers, which has no warm-up), or all below the outermost skip connection of a UNet, so that
/// only its last branch is computed (DeepCache, Ma et al. 2024, arXiv 2312.00858). The share is
/// above the requested one if these parts alone need more.
fn cache(
    pipeline: &Pipeline,
    learning: &Learning,
    observer: &dyn Observer,
) -> Result<(&'static str, ReuseSchedule)> {
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
