//! Low-rank attention, and fewer neurons (SlimDiff).

use super::compression::{self, Request};
use super::folder::{BATCH, Job};
use super::plan::Done;
use crate::error::{Result, refuse};
use crate::settings::{ModuleName, NeuronsName, Positive, RowsName, RuleName, SlimSettings};
use secateur_models::{HeadGroup, ModelFolder, Sampling};
use secateur_prune::{
    Allocation, Amount, Budget, Neurons, Packages, Pattern, Portion, Rows, Slim, Target, Task,
};

/// The default number of calibration samples, each a picture at one denoising step (as in
/// SlimDiff). It is used if no number of pictures is given.
pub(super) const SAMPLES: usize = 500;
/// The default share of the parameters that is removed.
const BUDGET: f64 = 0.12;

/// Makes the new model, or returns what would be done.
pub(super) fn run(args: &SlimSettings, job: &Job<'_>) -> Result<Done> {
    let folder = job.open(&args.shared)?;
    let steps = args.shared.sampling.sampling(&folder, BATCH)?.steps;
    let (calibration, report_prompts, mut notes) =
        compression::prompts(&args.calibration, &args.shared, &folder, SAMPLES.div_ceil(steps))?;
    let method = Slim {
        rows: match args.rows.unwrap_or_default() {
            RowsName::Values => Rows::Values,
            RowsName::Attention => Rows::Attention,
        },
        neurons: match args.neurons.unwrap_or_default() {
            NeuronsName::Obs => Neurons::Obs,
            NeuronsName::Leverage => Neurons::Leverage,
        },
    };
    let wanted = |module: ModuleName| args.modules.is_empty() || args.modules.contains(&module);
    let portion = |share: f64| {
        Ok::<_, secateur_prune::Error>(Portion {
            query_key: wanted(ModuleName::QueryKey),
            value_output: wanted(ModuleName::ValueOutput),
            neurons: wanted(ModuleName::FeedForward),
            multiple: args.multiple.map_or(8, Positive::get),
            ..Portion::slim(share)?
        })
    };
    if wanted(ModuleName::QueryKey) {
        notes.extend(barred(&folder, &calibration.sampling));
    }
    let (amount, wanted) = amount(args)?;
    let target = Target::new(&folder, &calibration.sampling, amount, wanted)?;
    let share = target.uniform_share(&folder, &calibration.sampling, |share| {
        let task = Task::Structured { method: &method, portion: portion(share)? };
        // What goes does not depend on the packages.
        compression::plan(
            &args.calibration,
            &folder,
            &calibration.sampling,
            &task,
            Packages::Count(1),
        )
    })?;
    let allocation = match args.allocation.unwrap_or_default() {
        RuleName::Influence => Allocation::Greedy(amount),
        RuleName::Softmax => Allocation::Softmax(amount),
        RuleName::Uniform => Allocation::Uniform,
    };
    let budget = Budget { allocation, total: Some(target.total) };
    let task = Task::Structured { method: &method, portion: portion(share)? };
    let of_all = Pattern::Unstructured(target.total / target.whole);
    let removed =
        format!("{of_all} of the {} ({:.0} % of those that can go)", amount.words(), 100.0 * share);
    compression::run(Request {
        job,
        settings: &args.calibration,
        shared: &args.shared,
        folder,
        calibration,
        report_prompts,
        task,
        removed,
        budget,
        notes,
    })
}

/// Returns the quantity that is counted, and the share of it to remove.
fn amount(args: &SlimSettings) -> Result<(Amount, f64)> {
    let (amount, share) = match (args.budget, args.speedup) {
        (_, Some(speedup)) if speedup > 1.0 => (Amount::Macs, 1.0 - 1.0 / speedup),
        (_, Some(speedup)) => refuse!("`speedup {speedup}` is not more than 1"),
        (budget, None) => (Amount::Parameters, budget.unwrap_or(BUDGET)),
    };
    if share > 0.0 && share < 1.0 {
        return Ok((amount, share));
    }
    refuse!(
        "`budget {share}` is not in (0, 1): give the share of the denoiser's parameters to remove"
    )
}

/// Returns a note on attentions whose queries and keys are not changed, if there are any.
fn barred(folder: &ModelFolder, sampling: &Sampling) -> Option<String> {
    let structure = folder.structure(sampling);
    let heads: Vec<&HeadGroup> = structure.blocks.iter().flat_map(|block| &block.heads).collect();
    let reasons: Vec<&str> = heads.iter().filter_map(|heads| heads.barred()).collect();
    let first = reasons.first()?;
    Some(format!(
        "queries and keys of {} of {} attentions stay as they are: {first}",
        reasons.len(),
        heads.len()
    ))
}
