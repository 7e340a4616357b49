//! What is compared with what.

use crate::rows::{Row, Study};
use crate::slim;
use anyhow::{Result, bail};
use clap::ValueEnum;
use secateur_prune::{
    Allocation, Amount, Calibration, Dsnot, L1, Magnitude, Method, Obs, Pattern, Portion, Source,
    StructuredMethod, Task, Wanda, Weighting, allocate, prune,
};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StudyName {
    /// Every method at every sparsity
    Methods,
    /// Every weighting of the denoising steps
    Weighting,
    /// Heads and neurons by every method at every share
    Structured,
    /// The same share everywhere, or less where it hurts more
    Allocation,
    /// Hessians of all tokens, or of some
    Tokens,
    /// SlimDiff's allocations, rows and numbers of samples, and OBS and L1 at the same number of
    /// parameters
    Slim,
    /// What is learned to be skipped, fewer steps, and plain rules, at 2, 3 and 4 times fewer
    /// multiply-accumulates
    Skip,
}

impl Study {
    /// `budgets` are shares of the parameters, for the study that takes them.
    pub(crate) fn new(name: StudyName, budgets: &[f64]) -> Result<Self> {
        match name {
            StudyName::Methods => Self::methods(),
            StudyName::Weighting => Self::weightings(),
            StudyName::Structured => Self::structured(),
            StudyName::Allocation => Self::allocations(),
            StudyName::Tokens => Self::tokens(),
            StudyName::Slim => Ok(slim::study(budgets)),
            StudyName::Skip => bail!("it has its own table"),
        }
    }

    fn methods() -> Result<Self> {
        const METHODS: [&dyn Method; 5] =
            [&Obs, &Wanda, &Dsnot::Wanda, &Dsnot::Hessian, &Magnitude];
        let rows = |name: &str, label: &str, pattern: Pattern| {
            METHODS.map(|method| Row {
                name: format!("{}-{name}", method.name()),
                label: format!("{} {label}", method.name()),
                prune: Box::new(move |seed, pipeline| {
                    seed.prune_saved(pipeline, &Task::Weights { method, pattern })
                }),
            })
        };
        // The first sparsity over all seeds comes first: it is the one whose spread matters most.
        let first = rows("0.5", "50 %", Pattern::unstructured(0.5)?).into();
        let others = [
            rows("0.6", "60 %", Pattern::unstructured(0.6)?),
            rows("0.7", "70 %", Pattern::unstructured(0.7)?),
            rows("2of4", "2:4", "2:4".parse()?),
        ];
        let others = others.into_iter().flatten().collect();
        let about = "Hessians of all tokens.";
        Ok(Self { about, token_stride: 1, groups: vec![first, others], ..Self::default() })
    }

    fn structured() -> Result<Self> {
        let row = |method: &'static dyn StructuredMethod, percent: u32| Row {
            name: format!("structured-{}-{percent}", method.name()),
            label: format!("{} {percent} %", method.name()),
            prune: Box::new(move |seed, pipeline| {
                let portion = Portion::new(f64::from(percent) / 100.0)?;
                seed.prune_saved(pipeline, &Task::Structured { method, portion })
            }),
        };
        let taylor = |percent: u32| Row {
            name: format!("structured-taylor-{percent}"),
            label: format!("taylor {percent} %"),
            prune: Box::new(move |seed, pipeline| {
                let portion = Portion::new(f64::from(percent) / 100.0)?;
                let method = seed.taylor(pipeline)?;
                seed.prune_saved(pipeline, &Task::Structured { method, portion })
            }),
        };
        let rows = [10, 20, 30, 40, 50].into_iter();
        let rows =
            rows.flat_map(|percent| [row(&Obs, percent), row(&L1, percent), taylor(percent)]);
        let about = "Heads and neurons of all blocks but the first and the last; multiples of 8 \
            neurons are left.";
        let groups = vec![rows.collect()];
        Ok(Self { about, token_stride: 4, groups, sizes: true, baseline: None })
    }

    fn allocations() -> Result<Self> {
        use Allocation::Uniform;
        let [parameters, macs] = [Amount::Parameters, Amount::Macs].map(Allocation::Greedy);
        let rows = |name: &str, label: &str, task: Task<'static>, allocations: &[Allocation]| {
            let row = |&allocation: &Allocation| Row {
                name: format!("allocation-{name}-{allocation}"),
                label: format!("{label}, {allocation}"),
                prune: Box::new(move |seed, pipeline| {
                    let statistics = seed.statistics()?;
                    let source = Source::Saved(&statistics);
                    let mut plan = seed.plan(pipeline, &task)?;
                    if allocation != Allocation::Uniform {
                        let (settings, _) = allocate(
                            pipeline,
                            &plan,
                            &task,
                            &source,
                            seed.calibration(),
                            allocation.into(),
                            &(),
                        )?;
                        plan.set(&settings);
                    }
                    Ok(prune(pipeline, &plan, &task, &source, None, None, &())?)
                }),
            };
            allocations.iter().map(row).collect()
        };
        let weights = |pattern| Task::Weights { method: &Obs, pattern };
        let groups = vec![
            rows("0.5", "50 %", weights(Pattern::unstructured(0.5)?), &[Uniform, parameters]),
            rows(
                "structured-0.3",
                "structured 30 %",
                Task::Structured { method: &Obs, portion: Portion::new(0.3)? },
                &[Uniform, parameters, macs],
            ),
            rows("2of4", "2:4", weights("2:4".parse()?), &[Uniform, parameters]),
        ];
        let about = "obs, one package, Hessians of every fourth token. By parameters as many \
            weights go in total as with the \
                     same share everywhere, by macs as many multiply-accumulates.";
        Ok(Self { about, token_stride: 4, groups, sizes: true, baseline: None })
    }

    fn tokens() -> Result<Self> {
        let task = Task::Structured { method: &Obs, portion: Portion::new(0.3)? };
        let row = |token_stride: usize| Row {
            name: format!("tokens-{token_stride}"),
            label: format!("1 of {token_stride}"),
            prune: Box::new(move |seed, pipeline| {
                let calibration = Calibration { token_stride, ..seed.calibration().clone() };
                let step_weights = calibration.step_weights(pipeline, &())?;
                seed.prune(pipeline, &task, &Source::Calibration(&calibration, &step_weights, None))
            }),
        };
        let groups = vec![[1, 4].map(row).into()];
        let about = "obs, 30 % of heads and neurons, one package, Hessians of one of so many \
            tokens. Differences are seed by seed. \
                     Each row's layer error is under its own Hessian.";
        Ok(Self { about, token_stride: 1, groups, sizes: false, baseline: Some("tokens-1".into()) })
    }

    fn weightings() -> Result<Self> {
        let pattern = Pattern::unstructured(0.5)?;
        let row = |weighting: Weighting| Row {
            name: format!("weighting-{weighting}"),
            label: weighting.to_string(),
            prune: Box::new(move |seed, pipeline| {
                let task = Task::Weights { method: &Obs, pattern };
                let statistics = seed.weighted_statistics(pipeline, &task)?;
                seed.prune(pipeline, &task, &Source::Gathered(&statistics[&weighting.to_string()]))
            }),
        };
        let rows = Weighting::ALL.map(row);
        let baseline = format!("weighting-{}", Weighting::Uniform);
        let about = "obs 50 %, one package, Hessians of every fourth token. Differences are to \
            uniform, seed by seed: the \
                     prompts, the noise and the dense pictures of a seed are the same in all rows. \
                     Each row's layer error \
                     is under its own Hessian.";
        let (groups, baseline) = (vec![rows.into()], Some(baseline));
        Ok(Self { about, token_stride: 4, groups, sizes: false, baseline })
    }
}
