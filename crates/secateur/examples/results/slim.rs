//! SlimDiff against itself and others, at equal numbers of parameters.

use crate::rows::{Row, Study};
use crate::seed::Seed;
use anyhow::Result;
use secateur_models::Pipeline;
use secateur_prune::{
    Allocation, Amount, Budget, Calibration, L1, Neurons, Obs, Outcome, Portion, Rows, Slim,
    Source, StructuredMethod, Target, Task, allocate, prune,
};

/// Prompts of 50 samples and of 500, at 25 steps.
const FEW: usize = 2;
const SOME: usize = 20;

/// What fills a budget.
#[derive(Clone, Copy)]
struct Way {
    method: &'static dyn StructuredMethod,
    allocation: fn(Amount) -> Allocation,
    prompts: usize,
}

pub(crate) fn study(budgets: &[f64]) -> Study {
    const SLIM: Way = Way {
        method: &Slim { rows: Rows::Values, neurons: Neurons::Obs },
        allocation: Allocation::Greedy,
        prompts: SOME,
    };
    const LEVERAGE: &Slim = &Slim { rows: Rows::Values, neurons: Neurons::Leverage };
    const ATTENTION: &Slim = &Slim { rows: Rows::Attention, neurons: Neurons::Obs };
    let ways = [
        ("slim", "slim by influence", SLIM),
        ("slim-softmax", "slim by softmax", Way { allocation: Allocation::Softmax, ..SLIM }),
        (
            "slim-uniform",
            "slim alike everywhere",
            Way { allocation: |_| Allocation::Uniform, ..SLIM },
        ),
        ("slim-leverage", "slim, neurons by leverage", Way { method: LEVERAGE, ..SLIM }),
        ("slim-attention", "slim on what attention makes", Way { method: ATTENTION, ..SLIM }),
        ("slim-few", "slim, 50 samples", Way { prompts: FEW, ..SLIM }),
        ("obs", "obs, heads and neurons", Way { method: &Obs, ..SLIM }),
        ("l1", "l1, heads and neurons", Way { method: &L1, ..SLIM }),
    ];
    let row = |budget: f64, (name, label, way): (&str, &str, Way)| Row {
        name: format!("slim-{budget}-{name}"),
        label: format!("{} %, {label}", 100.0 * budget),
        prune: Box::new(move |seed, pipeline| way.fill(seed, pipeline, budget)),
    };
    let groups = budgets.iter().map(|&budget| ways.map(|way| row(budget, way)).into()).collect();
    let about = "Shares of all parameters, at most; 500 samples (20 prompts x 25 steps) but where \
        it says 50, Hessians of every fourth \
                 token, one package. obs and l1 take from all blocks, by influence too.";
    Study { about, token_stride: 4, groups, sizes: true, baseline: None }
}

impl Way {
    fn fill(self, seed: &Seed<'_>, pipeline: &mut Pipeline, budget: f64) -> Result<Outcome> {
        let Self { method, allocation, prompts } = self;
        let all = seed.calibration();
        let calibration = Calibration { prompts: all.prompts[..prompts].to_vec(), ..all.clone() };
        let portion = |share: f64| {
            if method.name().starts_with("slim") {
                Portion::slim(share)
            } else {
                Ok(Portion { keep_ends: 0, ..Portion::new(share)? })
            }
        };
        let (folder, sampling) = (pipeline.folder().clone(), &calibration.sampling);
        let target = Target::new(&folder, sampling, Amount::Parameters, budget)?;
        let share = target.uniform_share(&folder, sampling, |share| {
            seed.plan(pipeline, &Task::Structured { method, portion: portion(share)? })
        })?;
        let task = Task::Structured { method, portion: portion(share)? };
        let mut plan = seed.plan(pipeline, &task)?;
        let step_weights = calibration.step_weights(pipeline, &())?;
        let source = Source::Calibration(&calibration, &step_weights, None);
        let allocation = allocation(Amount::Parameters);
        if allocation == Allocation::Uniform {
            return Ok(prune(pipeline, &plan, &task, &source, None, None, &())?);
        }
        let budget = Budget { allocation, total: Some(target.total) };
        let (settings, statistics) =
            allocate(pipeline, &plan, &task, &source, &calibration, budget, &())?;
        plan.set(&settings);
        let gathered = statistics.as_ref().map(Source::Gathered);
        Ok(prune(pipeline, &plan, &task, gathered.as_ref().unwrap_or(&source), None, None, &())?)
    }
}
