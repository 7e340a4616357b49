//! `secateur prune`.

use super::compression::{self, Job};
use super::told::{Done, tell};
use crate::args::{Common, GroupName, PruneArgs};
use crate::usage::{Usage, usage};
use anyhow::Result;
use secateur_prune::{Allocation, Amount, Pattern, Portion, StructuredMethod, Task};

/// Calibration prompts taken from a model's own list: quality rises to about that many, then is
/// flat.
pub(super) const SAMPLES: usize = 100;

pub(crate) fn run(args: &PruneArgs, common: &Common) -> Result<()> {
    tell(&compress(args, common)?, args.run.job.out.as_deref(), common)
}

/// The new model, or what would be done.
pub(super) fn compress(args: &PruneArgs, common: &Common) -> Result<Done> {
    let folder = args.run.job.model.open()?;
    let structured = structured_method(args)?;
    let task = task(args, structured.as_deref())?;
    let (calibration, report_prompts, notes) = compression::prompts(&args.run, &folder, SAMPLES)?;
    let allocation = allocation(args);
    let removed = removed(&task, allocation);
    let budget = allocation.into();
    compression::run(Job {
        args: &args.run,
        common,
        folder,
        calibration,
        report_prompts,
        task,
        removed,
        budget,
        notes,
    })
}

/// The method that chooses heads and neurons, where these are to go.
fn structured_method(args: &PruneArgs) -> Result<Option<Box<dyn StructuredMethod>>> {
    if args.structured.is_empty() {
        return Ok(None);
    }
    let problem = || {
        format!("--method {} cannot remove heads and neurons; obs, l1 and taylor can", args.method)
    };
    args.method.structured().ok_or_else(|| Usage(problem()).into()).map(Some)
}

/// Heads and neurons differ more in what they do than layers' weights, and there are fewer modules
/// to try.
fn allocation(args: &PruneArgs) -> Allocation {
    let greedy = Allocation::Greedy(Amount::Parameters);
    let default = if args.structured.is_empty() { Allocation::Uniform } else { greedy };
    args.allocation.unwrap_or(default)
}

/// How much goes, in words: where shares differ, of what there is as much as with equal ones.
fn removed(task: &Task<'_>, allocation: Allocation) -> String {
    match (task, allocation.amount()) {
        (Task::Structured { .. }, Some(amount)) => {
            task.to_string().replacen(" of ", &format!(" of the {} of ", amount.words()), 1)
        }
        _ => task.to_string(),
    }
}

/// What the command line asks for.
fn task<'a>(args: &PruneArgs, structured: Option<&'a dyn StructuredMethod>) -> Result<Task<'a>> {
    let Some(method) = structured else {
        let pattern = match (&args.pattern, args.sparsity) {
            (Some(pattern), _) => pattern.parse()?,
            (None, Some(0.0)) => {
                usage!("--sparsity 0 removes nothing: give the share of the weights to remove")
            }
            (None, sparsity) => Pattern::unstructured(sparsity.unwrap_or(0.5))?,
        };
        let method = args.method.method();
        let problem =
            || format!("--method {} removes heads and neurons: give --structured", args.method);
        let method = method.ok_or_else(|| Usage(problem()))?;
        return Ok(Task::Weights { method, pattern });
    };
    let portion = Portion {
        heads: args.structured.contains(&GroupName::Heads),
        neurons: args.structured.contains(&GroupName::Neurons),
        keep_ends: args.keep_ends,
        multiple: args.multiple,
        ..Portion::new(args.sparsity.unwrap_or(0.3))?
    };
    Ok(Task::Structured { method, portion })
}
