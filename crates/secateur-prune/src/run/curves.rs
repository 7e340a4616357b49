//! The error of each layer or group as a function of its share.

use crate::calibration::InputStatistics;
use crate::error::Result;
use crate::methods::Task;
use crate::plan::{Package, Pattern, Portion, SharedInput};
use crate::run::budget::MOST_OF_GROUP;
use crate::run::influence::Influence;
use crate::run::outcome::Outcome;
use crate::run::setting::{Amount, Setting};
use crate::run::solve::{errors, remove, solve};
use secateur_models::{Edits, Observer, Pipeline, Removals};
use secateur_nn::LayerName;
use std::collections::{BTreeMap, BTreeSet};

/// A setting of a layer or group, with the amount that it removes and its error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) setting: Setting,
    pub(super) amount: f64,
    pub(super) error: f64,
}

/// Shares are tried from this much below the uniform share to this much above it.
const REACH: f64 = 0.3;

/// The shares that are solved for, in units of `REACH` from the uniform share.
const SOLVED: [f64; 5] = [-1.0, -0.5, 0.0, 0.5, 1.0];

/// Number of shares to choose from, interpolated between the solved ones.
const GRID: usize = 48;

/// The least and the greatest share of anything that is pruned.
const SHARES: (f64, f64) = (0.02, 0.95);

/// Numbers of heads and neurons that are tried, in quarters of the uniform share.
const QUARTERS: std::ops::RangeInclusive<usize> = 1..=8;

/// Numbers that are tried too, in eighths of the most that a group can lose.
const EIGHTHS: std::ops::RangeInclusive<usize> = 1..=8;

/// The inputs of making curves.
pub(super) struct Trial<'a> {
    pub(super) package: &'a Package,
    pub(super) statistics: &'a dyn Fn(&SharedInput) -> Result<InputStatistics>,
    pub(super) task: &'a Task<'a>,
    pub(super) amount: Amount,
}

/// The choices for one layer or group.
pub(super) struct Curve {
    /// The choices, from the least amount to the largest.
    pub(super) choices: Vec<Choice>,
    /// The amount that the uniform share removes.
    pub(super) uniform: f64,
    /// The influence of the uniform share on pictures.
    pub(super) influence: f64,
    /// Returns the setting of a share, and the amount that it removes.
    pub(super) at: Box<dyn Fn(f64) -> (Setting, f64)>,
}

pub(super) fn weight_curves(
    pipeline: &mut Pipeline,
    trial: &Trial<'_>,
    influence: &mut Influence,
    observer: &dyn Observer,
) -> Result<Vec<(LayerName, Curve)>> {
    let Task::Weights { method, pattern: uniform } = *trial.task else { return Ok(Vec::new()) };
    let patterns = tried(uniform);
    let mut curves = Vec::new();
    for input in &trial.package.inputs {
        let statistics = (trial.statistics)(input)?;
        let attempt = |pipeline: &Pipeline, pattern: Pattern| {
            let mut input = input.clone();
            input.layers.iter_mut().for_each(|layer| layer.pattern = Some(pattern));
            solve(pipeline, &input, method, &statistics)
        };
        let errors =
            |outcome: &Outcome| outcome.layers.iter().map(|layer| layer.error).collect::<Vec<_>>();
        let base = attempt(pipeline, uniform)?;
        let of_base = errors(&base);
        // Of the other outcomes only the errors are kept.
        let mut of_patterns = Vec::with_capacity(patterns.len());
        for &pattern in &patterns {
            let errors = if pattern == uniform {
                of_base.clone()
            } else {
                errors(&attempt(pipeline, pattern)?)
            };
            of_patterns.push((pattern, errors));
        }
        for (index, layer) in input.layers.iter().enumerate() {
            let scale = influence.of(pipeline, only(&base, &layer.name.weight()), observer)?;
            let weights = (layer.rows * layer.columns) as f64;
            let amount = match trial.amount {
                Amount::Macs => weights * layer.tokens as f64,
                Amount::Parameters => weights,
            };
            let factor = scaled(scale, of_base[index]);
            let solved: Vec<(Pattern, f64)> = of_patterns
                .iter()
                .map(|(pattern, errors)| (*pattern, factor * errors[index]))
                .collect();
            let choice = |(pattern, error): (Pattern, f64)| Choice {
                setting: Setting::Pattern(pattern),
                amount: amount * pattern.sparsity(),
                error,
            };
            let choices = between(&solved).into_iter().map(choice).collect();
            let at = move |share: f64| {
                let pattern = uniform.near(share);
                (Setting::Pattern(pattern), amount * pattern.sparsity())
            };
            let curve = Curve {
                choices,
                uniform: amount * uniform.sparsity(),
                influence: scale,
                at: Box::new(at),
            };
            curves.push((layer.name.clone(), curve));
        }
    }
    Ok(curves)
}

/// Returns the most shares that are solved for per layer or group.
#[must_use]
pub fn tries(task: &Task<'_>) -> usize {
    match task {
        Task::Weights { pattern, .. } => tried(*pattern).len(),
        Task::Structured { .. } => QUARTERS.count() + EIGHTHS.count(),
    }
}

/// Returns the patterns that are solved for, including the uniform one.
pub(super) fn tried(uniform: Pattern) -> Vec<Pattern> {
    match uniform {
        Pattern::Unstructured(share) => {
            let mut shares: Vec<f64> = SOLVED
                .iter()
                .map(|step| (share + step * REACH).clamp(SHARES.0.min(share), SHARES.1.max(share)))
                .collect();
            shares.dedup();
            shares.into_iter().map(Pattern::Unstructured).collect()
        }
        Pattern::SemiStructured { pruned, group } => {
            let near = pruned.saturating_sub(1).max(1)..=(pruned + 1).min(group - 1);
            near.map(|pruned| Pattern::SemiStructured { pruned, group }).collect()
        }
    }
}

/// Interpolates between solved shares: the logarithm of the error is linear between them.
pub(super) fn between(solved: &[(Pattern, f64)]) -> Vec<(Pattern, f64)> {
    let all_shares = |(pattern, _): &(Pattern, f64)| matches!(pattern, Pattern::Unstructured(_));
    if !solved.iter().all(all_shares) || solved.len() < 2 {
        return solved.to_vec();
    }
    let floor = f64::MIN_POSITIVE;
    let (first, last) = (solved[0].0.sparsity(), solved[solved.len() - 1].0.sparsity());
    let at = |step: usize| {
        let share = first + (last - first) * step as f64 / GRID as f64;
        let above = solved
            .iter()
            .position(|(pattern, _)| pattern.sparsity() >= share)
            .unwrap_or(solved.len() - 1)
            .max(1);
        let ((a, low), (b, high)) = (solved[above - 1], solved[above]);
        let place = (share - a.sparsity()) / (b.sparsity() - a.sparsity());
        let error = low.max(floor).ln() * (1.0 - place) + high.max(floor).ln() * place;
        (Pattern::Unstructured(share), error.exp())
    };
    (0..=GRID).map(at).collect()
}

pub(super) fn group_curves(
    pipeline: &mut Pipeline,
    trial: &Trial<'_>,
    influence: &mut Influence,
    observer: &dyn Observer,
) -> Result<Vec<(LayerName, Curve)>> {
    let Task::Structured { method, portion } = *trial.task else { return Ok(Vec::new()) };
    let (folder, sampling) = (pipeline.folder().clone(), influence.sampling.clone());
    let total = |removals: &Removals| trial.amount.of(&folder, &sampling, removals);
    let before = total(pipeline.removals())?;
    let mut curves = Vec::new();
    for planned in trial.package.coupled.iter().flatten() {
        let group = &planned.group;
        let mut one = pipeline.removals().clone();
        one.remove(group.name(), group.count(), &[0]);
        let amount = before - total(&one)?;
        let most = MOST_OF_GROUP.max(portion.sparsity);
        let around = QUARTERS.map(|quarters| (portion.sparsity * quarters as f64 / 4.0).min(most));
        let over_all = EIGHTHS.map(|eighths| MOST_OF_GROUP * eighths as f64 / 8.0);
        let counts =
            around.chain(over_all).map(|sparsity| Portion { sparsity, ..portion }.count(group));
        let tried: BTreeSet<usize> =
            counts.filter(|count| ![0, planned.remove].contains(count)).collect();
        let tried: Vec<usize> = tried.into_iter().collect();
        let package = trial.package;
        let uniform = [planned.clone()];
        let uniform = remove(pipeline, &uniform, package, method, trial.statistics)?;
        let scale = influence.of(pipeline, uniform.edits.clone(), observer)?;
        let factor = scaled(scale, uniform.error());
        let errors = errors(pipeline, group, &tried, package, method, trial.statistics)?;
        let known = [(planned.remove, uniform.error()), (0, 0.0)];
        let solved: BTreeMap<usize, f64> = tried.into_iter().zip(errors).chain(known).collect();
        let choice = |(count, error)| Choice {
            setting: Setting::Remove(count),
            amount: amount * count as f64,
            error: factor * error,
        };
        let choices = solved.into_iter().map(choice).collect();
        let of_share = group.clone();
        let at = move |share: f64| {
            let count = Portion { sparsity: share, ..portion }.count(&of_share);
            (Setting::Remove(count), amount * count as f64)
        };
        let uniform = amount * planned.remove as f64;
        let curve = Curve { choices, uniform, influence: scale, at: Box::new(at) };
        curves.push((group.name().clone(), curve));
    }
    Ok(curves)
}

/// Returns the factor that scales a layer's `error` to that influence.
fn scaled(influence: f64, error: f64) -> f64 {
    if error > 0.0 { influence / error } else { 0.0 }
}

/// Returns the edit of one parameter alone.
fn only(outcome: &Outcome, parameter: &str) -> Edits {
    let weights = outcome.edits.weights.iter().filter(|(name, _)| *name == parameter);
    let weights = weights.map(|(name, weight)| (name.clone(), weight.clone())).collect();
    Edits { weights, removals: outcome.edits.removals.clone() }
}

#[cfg(test)]
mod tests {
    use super::{between, tried};
    use crate::plan::Pattern;

    #[test]
    fn shares_between_solved_ones_are_on_a_line_of_logarithms() {
        let solved: Vec<(Pattern, f64)> = tried(Pattern::Unstructured(0.5))
            .into_iter()
            .map(|p| (p, (7.0 * p.sparsity()).exp()))
            .collect();
        assert_eq!(solved.len(), 5);
        for (pattern, error) in between(&solved) {
            let want = (7.0 * pattern.sparsity()).exp();
            assert!((error / want - 1.0).abs() < 1e-9, "{pattern}: {error}, {want}");
        }
        // Pieces of different slopes, 0.4 apart in all: the grid of 48 steps meets each solved
        // share.
        let solved = [(0.2, 1e-4), (0.5, 1e-2), (0.6, 1.0)]
            .map(|(share, error)| (Pattern::Unstructured(share), error));
        let curve = between(&solved);
        let ends = [(curve[0], solved[0]), (curve[36], solved[1]), (curve[48], solved[2])];
        for ((pattern, error), (share, want)) in ends {
            assert!(
                (pattern.sparsity() - share.sparsity()).abs() < 1e-12
                    && (error / want - 1.0).abs() < 1e-9
            );
        }
        for (step, share, want) in [(9, 0.275, 10f64.powf(-3.5)), (18, 0.35, 1e-3), (42, 0.55, 0.1)]
        {
            let (pattern, error) = curve[step];
            assert!(
                (pattern.sparsity() - share).abs() < 1e-12 && (error / want - 1.0).abs() < 1e-9,
                "{pattern}: {error}"
            );
        }
        assert!(
            curve.len() == 49
                && curve.is_sorted_by(|a, b| a.0.sparsity() < b.0.sparsity() && a.1 < b.1)
        );
        // What is dead costs nothing anywhere.
        assert!(
            between(&solved.map(|(pattern, _)| (pattern, 0.0)))
                .iter()
                .all(|(_, error)| *error < 1e-300)
        );
        let patterns = tried("2:4".parse().unwrap());
        assert_eq!(
            patterns.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["1:4", "2:4", "3:4"]
        );
        assert_eq!(tried(Pattern::Unstructured(0.9)).last().map(Pattern::sparsity), Some(0.95));
    }
}
