//! One calibration for methods that follow each other and would calibrate alike.

use super::recipe::Method;
use crate::args::{Command, RunArgs};
use crate::commands::compression::STATISTICS;
use crate::commands::{prune, slim};
use anyhow::Result;
use secateur_models::{ModelFolder, Subject};
use secateur_prune::{Obs, Packages, Pattern, Plan, Selection, Task};

/// Lets each such method but the first use what the one before carries over to its model. Of the
/// model's own prompts they all take as many as the method that wants the most.
pub(super) fn share(methods: &mut [Method], folder: &ModelFolder) -> Result<()> {
    let runs = methods.iter().map(run_args).collect::<Result<Vec<_>>>()?;
    let mut first = 0;
    for next in 1..=methods.len() {
        if next < methods.len() && alike(runs[next - 1].as_ref(), runs[next].as_ref()) {
            continue;
        }
        let of_one = &mut methods[first..next];
        if let (Some(run), 2..) = (&runs[first], of_one.len())
            && fits(run, folder)?
        {
            let prompts = &run.job.prompts;
            if prompts.prompts.is_none() && prompts.samples.is_none() {
                let samples = samples(of_one, run, folder)?;
                of_one.iter_mut().for_each(|method| method.add("samples", samples.to_string()));
            }
            for index in 1..of_one.len() {
                let statistics = of_one[index - 1].statistics();
                of_one[index - 1].add("carry-statistics", &statistics);
                of_one[index].add("statistics", &statistics);
            }
        }
        first = next;
    }
    Ok(())
}

/// What a method that calibrates was given.
fn run_args(method: &Method) -> Result<Option<RunArgs>> {
    Ok(match method.command(None)? {
        Command::Prune(args) => Some(args.run),
        Command::Slim(args) => Some(args.run),
        _ => None,
    })
}

fn alike(one: Option<&RunArgs>, other: Option<&RunArgs>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return false };
    let free = |run: &RunArgs| {
        let files = [&run.statistics, &run.save_statistics, &run.carry_statistics];
        files.iter().all(|file| file.is_none()) && run.packages.is_none_or(|packages| packages == 1)
    };
    let calibration = |run: &RunArgs| (run.weighting, run.token_stride);
    free(one)
        && free(other)
        && calibration(one) == calibration(other)
        && one.job.prompts == other.job.prompts
        && one.job.sampling == other.job.sampling
}

/// Whether statistics of all inputs, and what solves with them, fit into the default memory: three
/// times, as they are, as they are carried over, and as they are written. Where `--memory` bounds
/// the process, each method makes its own packages.
fn fits(run: &RunArgs, folder: &ModelFolder) -> Result<bool> {
    if run.memory.is_some() {
        return Ok(false);
    }
    let structure = folder.structure(&run.job.sampling.sampling(folder)?);
    let all = Task::Weights { method: &Obs, pattern: Pattern::unstructured(0.5)? };
    let plan = Plan::new(&structure, &Selection::default(), Packages::Memory(STATISTICS / 3), &all);
    Ok(plan.is_ok_and(|plan| plan.packages.len() == 1))
}

/// Prompts where no number is given: as many as the one of the methods takes that takes the most.
fn samples(methods: &[Method], run: &RunArgs, folder: &ModelFolder) -> Result<usize> {
    let steps = run.job.sampling.sampling(folder)?.steps;
    let of_method = |method: &Method| match method.name.as_str() {
        "slim" => slim::SAMPLES.div_ceil(steps),
        _ => prune::SAMPLES,
    };
    let wanted = methods.iter().map(of_method).max().unwrap_or(prune::SAMPLES);
    let own = match folder.subject() {
        Subject::Nothing => None,
        Subject::Text | Subject::Label => folder.prompts(|prompts| &prompts.calibration)?,
    };
    Ok(own.map_or(wanted, |own| own.len().min(wanted)))
}
