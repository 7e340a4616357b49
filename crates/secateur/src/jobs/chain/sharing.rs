//! Sharing of one calibration between successive methods that would calibrate alike.

use super::step::Step;
use crate::error::Result;
use crate::jobs::compression::STATISTICS;
use crate::jobs::folder::BATCH;
use crate::jobs::{prune, slim};
use crate::settings::Positive;
use secateur_models::{ModelFolder, Subject};
use secateur_prune::{Obs, Packages, Pattern, Plan, Selection, Task};

/// Makes each such method, except the first, use the statistics that the method before carries over
/// to its model. All of them use as many of the model's own prompts as the method that needs most.
pub(super) fn share(steps: &mut [Step], folder: &ModelFolder) -> Result<()> {
    for alike in steps.chunk_by_mut(alike) {
        let several = alike.len() > 1;
        let Some(first) = alike.first().filter(|_| several) else { continue };
        if !fits(first, folder)? {
            continue;
        }
        let prompts = &first.settings.shared().prompts;
        if prompts.prompts.is_none() && prompts.samples.is_none() {
            let samples = samples(alike, folder)?;
            for step in &mut *alike {
                step.settings.shared_mut().prompts.samples = Some(Positive::try_from(samples)?);
            }
        }
        let last = alike.len() - 1;
        for (index, step) in alike.iter_mut().enumerate() {
            (step.uses_statistics, step.carries_statistics) = (index > 0, index < last);
        }
    }
    Ok(())
}

fn alike(one: &Step, other: &Step) -> bool {
    let (Some(own), Some(others)) = (one.calibration(), other.calibration()) else { return false };
    let free = |step: &crate::settings::CalibrationSettings| {
        let files = [&step.statistics, &step.save_statistics, &step.carry_statistics];
        let packages = step.packages.is_none_or(|packages| packages.get() == 1);
        files.iter().all(|file| file.is_none()) && packages
    };
    let (own_shared, others_shared) = (one.settings.shared(), other.settings.shared());
    free(own)
        && free(others)
        && (own.weighting(), own.token_stride()) == (others.weighting(), others.token_stride())
        && own_shared.prompts == others_shared.prompts
        && own_shared.sampling == others_shared.sampling
        && own_shared.device == others_shared.device
}

/// Returns whether statistics of all inputs, with the solver, fit into the default memory three
/// times: as gathered, as carried over, and as written. If the user sets a memory limit, each
/// method makes its own packages.
fn fits(step: &Step, folder: &ModelFolder) -> Result<bool> {
    if step.calibration().is_none_or(|calibration| calibration.memory.is_some()) {
        return Ok(false);
    }
    let sampling = step.settings.shared().sampling.sampling(folder, BATCH)?;
    let structure = folder.structure(&sampling);
    let all = Task::Weights { method: &Obs, pattern: Pattern::unstructured(0.5)? };
    let plan = Plan::new(&structure, &Selection::default(), Packages::Memory(STATISTICS / 3), &all);
    Ok(plan.is_ok_and(|plan| plan.packages.len() == 1))
}

/// Returns the number of prompts if none is given: the largest default of the methods.
fn samples(steps: &[Step], folder: &ModelFolder) -> Result<usize> {
    let mut wanted = 0;
    for step in steps {
        let sampling = step.settings.shared().sampling.sampling(folder, BATCH)?;
        wanted = wanted.max(match step.settings.name() {
            "slim" => slim::SAMPLES.div_ceil(sampling.steps),
            _ => prune::SAMPLES,
        });
    }
    let own = match folder.subject() {
        Subject::Nothing => None,
        Subject::Text | Subject::Label => folder.prompts(|prompts| &prompts.calibration)?,
    };
    Ok(own.map_or(wanted, |own| own.len().min(wanted)))
}
