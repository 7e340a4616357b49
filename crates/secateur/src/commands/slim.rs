//! `secateur slim`.

use super::compression::{self, Job};
use crate::args::{Common, ModuleName, RowsName, RuleName, RunArgs, SlimArgs};
use anyhow::{Result, bail};
use secateur_models::{HeadGroup, ModelFolder, Sampling};
use secateur_prune::{Allocation, Amount, Budget, Removal, Rows, Slim, Task};

/// Calibration samples, each a picture at a denoising step, where no number of pictures is given (SlimDiff's).
const SAMPLES: usize = 500;
/// The share of the parameters that goes where none is given.
const BUDGET: f64 = 0.12;
/// No module loses more than this share.
const MOST: f64 = 0.8;

pub(crate) fn run(args: &SlimArgs, common: &Common) -> Result<()> {
    let folder = args.run.model.open()?;
    let steps = args.run.sampling.sampling(&folder)?.steps;
    let (calibration, report_prompts, mut notes) = compression::prompts(&args.run, &folder, SAMPLES.div_ceil(steps))?;
    let method = Slim {
        rows: match args.rows {
            RowsName::Values => Rows::Values,
            RowsName::Attention => Rows::Attention,
        },
    };
    let wanted = |module: ModuleName| args.modules.contains(&module);
    let removal = |share: f64| {
        Ok::<_, anyhow::Error>(Removal {
            query_key: wanted(ModuleName::QueryKey),
            value_output: wanted(ModuleName::ValueOutput),
            neurons: wanted(ModuleName::FeedForward),
            multiple: args.multiple,
            ..Removal::slim(share)?
        })
    };
    if wanted(ModuleName::QueryKey) {
        notes.extend(barred(&folder, &calibration.sampling));
    }
    let target = Target::new(args, &folder, &calibration.sampling)?;
    let removed = |share: f64| {
        let task = Task::Structured { method: &method, removal: removal(share)? };
        target.removed(&args.run, &folder, &calibration.sampling, &task)
    };
    let share = target.share(removed)?;
    let allocation = match args.allocation {
        RuleName::Influence => Allocation::Greedy(target.amount),
        RuleName::Softmax => Allocation::Softmax(target.amount),
        RuleName::Uniform => Allocation::Uniform,
    };
    let budget = Budget { allocation, total: Some(target.total) };
    let task = Task::Structured { method: &method, removal: removal(share)? };
    compression::run(Job { args: &args.run, common, folder, calibration, report_prompts, task, budget, notes })
}

/// What is to go.
struct Target {
    amount: Amount,
    total: f64,
    /// Of the whole denoiser.
    whole: f64,
}

impl Target {
    fn new(args: &SlimArgs, folder: &ModelFolder, sampling: &Sampling) -> Result<Self> {
        let (amount, share) = match (args.budget, args.speedup) {
            (_, Some(speedup)) if speedup > 1.0 => (Amount::Macs, 1.0 - 1.0 / speedup),
            (_, Some(speedup)) => bail!("--speedup {speedup} is not more than 1"),
            (budget, None) => (Amount::Parameters, budget.unwrap_or(BUDGET)),
        };
        if !(share > 0.0 && share < 1.0) {
            bail!("--budget {share} is not in (0, 1): give the share of the denoiser's parameters to remove");
        }
        let whole = match amount {
            Amount::Parameters => folder.parameters_without(folder.removals())? as f64,
            Amount::Macs => folder.structure(sampling).macs() as f64,
        };
        Ok(Self { amount, total: share * whole, whole })
    }

    /// What the same share everywhere removes; nothing where it is too small to remove any.
    fn removed(&self, args: &RunArgs, folder: &ModelFolder, sampling: &Sampling, task: &Task<'_>) -> Result<f64> {
        let removals = compression::plan(args, folder, sampling, task)?.removals(folder.removals());
        let left = match self.amount {
            Amount::Parameters => folder.parameters_without(&removals)? as f64,
            Amount::Macs => folder.whole_structure(sampling).without(&removals).macs() as f64,
        };
        Ok(self.whole - left)
    }

    /// The least share, the same everywhere, that removes as much as is to go.
    fn share(&self, removed: impl Fn(f64) -> Result<f64>) -> Result<f64> {
        let most = removed(MOST)?;
        if most < self.total {
            let (asked, can) = (self.total / self.whole, most / self.whole);
            match self.amount {
                Amount::Parameters => bail!(
                    "{:.1} % of the parameters cannot go: of what can be made smaller {:.0} % is {:.1} % of all; --budget \
                     {:.3} is the largest",
                    100.0 * asked,
                    100.0 * MOST,
                    100.0 * can,
                    (1000.0 * can).floor() / 1000.0
                ),
                Amount::Macs => bail!(
                    "{:.1} % of the multiply-accumulates cannot go, for {:.2} times fewer: --speedup {:.2} is the largest",
                    100.0 * asked,
                    1.0 / (1.0 - asked),
                    (100.0 / (1.0 - can)).floor() / 100.0
                ),
            }
        }
        let (mut low, mut high) = (0.0, MOST);
        for _ in 0..20 {
            let middle = 0.5 * (low + high);
            // A share that is too small for a plan removes nothing.
            if removed(middle).unwrap_or(0.0) < self.total { low = middle } else { high = middle }
        }
        Ok(high)
    }
}

/// What is said of attentions whose queries and keys stay as they are.
fn barred(folder: &ModelFolder, sampling: &Sampling) -> Option<String> {
    let structure = folder.structure(sampling);
    let heads: Vec<&HeadGroup> = structure.blocks.iter().flat_map(|block| &block.heads).collect();
    let reasons: Vec<&str> = heads.iter().filter_map(|heads| heads.barred()).collect();
    let first = reasons.first()?;
    Some(format!("queries and keys of {} of {} attentions stay as they are: {first}", reasons.len(), heads.len()))
}
