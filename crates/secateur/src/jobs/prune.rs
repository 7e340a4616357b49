//! Pruning of weights, or of heads and neurons.

use super::compression::{self, Request};
use super::folder::Job;
use super::plan::Done;
use crate::error::{Result, refuse};
use crate::settings::{Count, GroupName, Positive, PruneSettings};
use secateur_prune::{
    Allocation, Amount, METHODS, NamedMethod, Pattern, Portion, StructuredMethod, Task,
};

/// The default number of calibration prompts from a model's own list. Quality rises up to about
/// that number, and then is flat.
pub(super) const SAMPLES: usize = 100;

/// Makes the new model, or returns what would be done.
pub(super) fn run(args: &PruneSettings, job: &Job<'_>) -> Result<Done> {
    let folder = job.open(&args.shared)?;
    let structured = structured_method(args)?;
    let task = task(args, structured.as_deref())?;
    let (calibration, report_prompts, notes) =
        compression::prompts(&args.calibration, &args.shared, &folder, SAMPLES)?;
    let allocation = allocation(args);
    let removed = removed(&task, allocation);
    let budget = allocation.into();
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

/// Returns the method that chooses heads and neurons, if the settings remove these.
fn structured_method(args: &PruneSettings) -> Result<Option<Box<dyn StructuredMethod>>> {
    if args.structured.is_empty() {
        return Ok(None);
    }
    let NamedMethod { name, structured, .. } = args.method()?;
    let Some(structured) = structured else {
        let able = METHODS.iter().filter(|method| method.structured.is_some());
        let able = able.map(|method| method.name).collect::<Vec<_>>().join(", ");
        refuse!("`method {name}` cannot remove heads and neurons; those that can: {able}")
    };
    Ok(Some(structured()))
}

/// Returns the allocation. By default heads and neurons have different shares, as they differ more
/// in importance than the weights of layers, and there are fewer modules to try.
fn allocation(args: &PruneSettings) -> Allocation {
    let greedy = Allocation::Greedy(Amount::Parameters);
    let default = if args.structured.is_empty() { Allocation::Uniform } else { greedy };
    args.allocation.unwrap_or(default)
}

/// Describes in words how much is removed. If shares differ, they remove as much as equal ones
/// would.
fn removed(task: &Task<'_>, allocation: Allocation) -> String {
    match (task, allocation.amount()) {
        (Task::Structured { .. }, Some(amount)) => {
            task.to_string().replacen(" of ", &format!(" of the {} of ", amount.words()), 1)
        }
        _ => task.to_string(),
    }
}

/// Returns the task of the settings.
fn task<'a>(
    args: &PruneSettings,
    structured: Option<&'a dyn StructuredMethod>,
) -> Result<Task<'a>> {
    let Some(method) = structured else {
        let pattern = match (&args.pattern, args.sparsity) {
            (Some(pattern), _) => pattern.parse()?,
            (None, Some(0.0)) => {
                refuse!("`sparsity 0` removes nothing: give the share of the weights to remove")
            }
            (None, sparsity) => Pattern::unstructured(sparsity.unwrap_or(0.5))?,
        };
        let NamedMethod { name, weights, .. } = args.method()?;
        let Some(method) = weights else {
            refuse!("`method {name}` removes heads and neurons: give `structured`")
        };
        return Ok(Task::Weights { method: *method, pattern });
    };
    let portion = Portion {
        heads: args.structured.contains(&GroupName::Heads),
        neurons: args.structured.contains(&GroupName::Neurons),
        keep_ends: args.keep_ends.map_or(1, Count::get),
        multiple: args.multiple.map_or(8, Positive::get),
        ..Portion::new(args.sparsity.unwrap_or(0.3))?
    };
    Ok(Task::Structured { method, portion })
}
