//! How far each layer goes: less where it hurts more, at the same total.

use crate::calibrate::{Calibration, calibrate};
use crate::driver::{Outcome, Source, Statistics, remove, solve};
use crate::error::{Error, Result};
use crate::pattern::Pattern;
use crate::plan::{Package, Plan, PlannedGroup, SharedInput};
use crate::statistics::InputStatistics;
use crate::task::{Removal, Task};
use candle_core::Tensor;
use secateur_models::{Edits, Observer, Pipeline, Removals, Sampling};
use secateur_nn::LayerName;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What is given to each layer or group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allocation {
    /// The same share of all, as in OBS-Diff.
    #[default]
    Uniform,
    /// Shares of least error that remove as much in total.
    Greedy(Amount),
    /// MoDeGPT's rule: shares in proportion to exp(-s / mean of s) for the influences s, that remove as much in total.
    Softmax(Amount),
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// Parameters of the denoiser.
    Parameters,
    /// Its multiply-accumulates.
    Macs,
}

/// What an allocation has to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// To which layer or group.
    pub allocation: Allocation,
    /// How many parameters or multiply-accumulates of a call for one sample go; nothing for as many as the plan removes.
    pub total: Option<f64>,
}

impl From<Allocation> for Budget {
    fn from(allocation: Allocation) -> Self {
        Self { allocation, total: None }
    }
}

impl Allocation {
    /// What it counts, if it does.
    #[must_use]
    pub fn amount(self) -> Option<Amount> {
        match self {
            Self::Uniform => None,
            Self::Greedy(amount) | Self::Softmax(amount) => Some(amount),
        }
    }
}

impl Amount {
    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Parameters => "parameters",
            Self::Macs => "multiply-accumulates",
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parameters => "parameters",
            Self::Macs => "macs",
        })
    }
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Greedy(amount) => amount.fmt(f),
            Self::Softmax(amount) => write!(f, "softmax-{amount}"),
        }
    }
}

impl FromStr for Allocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Uniform, Self::Greedy(Amount::Parameters), Self::Greedy(Amount::Macs)];
        let found = all.into_iter().find(|allocation| allocation.to_string() == text);
        found.ok_or_else(|| {
            Error::Request(format!("allocation {text:?} is unknown; there are uniform, parameters, macs"))
        })
    }
}

/// How far a layer or group goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Setting {
    /// Zeros.
    Pattern(Pattern),
    /// So many heads, neurons or dimensions.
    Remove(usize),
}

/// Settings by the name of the layer or group.
pub type Settings = BTreeMap<LayerName, Setting>;

/// One setting of a layer or group, what it removes, and what that costs.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Choice {
    setting: Setting,
    amount: f64,
    error: f64,
}

/// Shares are tried from so much below the uniform one to so much above it.
const REACH: f64 = 0.3;
/// Shares that are solved for, of these either side.
const SOLVED: [f64; 5] = [-1.0, -0.5, 0.0, 0.5, 1.0];
/// Shares between them that are chosen from.
const GRID: usize = 48;
/// No share is more, and none of what is pruned less.
const SHARES: (f64, f64) = (0.02, 0.95);
/// Multiples of the uniform share of heads and neurons that are tried, in quarters.
const QUARTERS: std::ops::RangeInclusive<usize> = 1..=8;
/// Parts of the most of a group that are tried too.
const EIGHTHS: std::ops::RangeInclusive<usize> = 1..=8;
/// No group loses more.
pub(crate) const MOST_OF_GROUP: f64 = 0.8;
/// Images that an influence is measured on.
const IMAGES: usize = 4;

impl Plan {
    /// Gives every layer or group of the plan its setting.
    pub fn set(&mut self, settings: &Settings) {
        for package in &mut self.packages {
            for layer in package.inputs.iter_mut().flat_map(|input| &mut input.layers) {
                if let Some(Setting::Pattern(pattern)) = settings.get(&layer.name) {
                    layer.pattern = Some(*pattern);
                }
            }
            for planned in package.coupled.iter_mut().flatten() {
                if let Some(Setting::Remove(remove)) = settings.get(planned.group.name()) {
                    planned.remove = *remove;
                }
            }
        }
    }
}

/// Finds the settings of least error that remove as much in total as `plan`, which has the same share everywhere; and gives
/// the statistics that it gathered for that, where the plan has one package and `source` is a calibration. `calibration` has
/// the prompts that pictures are drawn from.
///
/// The error of a layer at some shares is what the method leaves of it there, see
/// [`hessian_error`](crate::hessian_error); between these its logarithm is linear. What it does to pictures is measured once: the model with that
/// layer alone pruned to the uniform share draws four of the calibration prompts in a quarter of the steps, and the squared
/// difference of the latents is its influence, to which its errors are scaled. Then the layers go step by step, the one first
/// that pays least for what it removes. Both total up: that errors of layers add is an assumption.
///
/// # Errors
/// As [`prune`](crate::prune).
pub fn allocate(
    pipeline: &mut Pipeline,
    plan: &Plan,
    task: &Task<'_>,
    source: &Source<'_>,
    calibration: &Calibration,
    budget: Budget,
    observer: &dyn Observer,
) -> Result<(Settings, Option<Statistics>)> {
    let Some(amount) = budget.allocation.amount() else { return Ok((Settings::new(), None)) };
    let mut influence = Influence::new(pipeline, calibration, observer)?;
    let mut curves: BTreeMap<LayerName, Curve> = BTreeMap::new();
    let mut gathered = Statistics::new();
    for (index, package) in plan.packages.iter().enumerate() {
        let stage = |name: &str| match plan.packages.len() {
            1 => format!("{name} for the allocation"),
            count => format!("{name} {}/{count} for the allocation", index + 1),
        };
        if let Source::Calibration(calibration, step_weights, journal) = source {
            // Not beside those of the next.
            gathered.clear();
            let (sums, stage) = (journal.map(|journal| journal.sums(0, index)), stage("calibrate"));
            gathered = calibrate(pipeline, package, calibration, step_weights, sums, &stage, observer)?;
        }
        let modules = match task {
            Task::Weights { .. } => package.layers().count(),
            Task::Structured { .. } => package.coupled.iter().flatten().count(),
        };
        observer.begin(&stage("try"), modules, "modules");
        let curves_of = match task {
            Task::Weights { .. } => weight_curves,
            Task::Structured { .. } => group_curves,
        };
        let statistics = |input: &SharedInput| source.statistics(input, &gathered);
        let trial = Trial { package, statistics: &statistics, task, amount };
        curves.extend(curves_of(pipeline, &trial, &mut influence, observer)?);
    }
    let total = budget.total.unwrap_or_else(|| curves.values().map(|curve| curve.uniform).sum());
    let settings = match budget.allocation {
        Allocation::Softmax(_) => softmax(&curves, total),
        _ => greedy(&curves, total),
    };
    let keep = plan.packages.len() == 1 && matches!(source, Source::Calibration(..));
    Ok((settings, keep.then_some(gathered)))
}

/// What curves are made from.
struct Trial<'a> {
    package: &'a Package,
    statistics: &'a dyn Fn(&SharedInput) -> Result<Cow<'a, InputStatistics>>,
    task: &'a Task<'a>,
    amount: Amount,
}

/// What can become of one layer or group.
struct Curve {
    /// From the least amount to the largest.
    choices: Vec<Choice>,
    /// What the uniform share removes.
    uniform: f64,
    /// What the uniform share does to pictures.
    influence: f64,
    /// The setting of a share, and what it removes.
    at: Box<dyn Fn(f64) -> (Setting, f64)>,
}

fn weight_curves(
    pipeline: &mut Pipeline,
    trial: &Trial<'_>,
    influence: &mut Influence,
    observer: &dyn Observer,
) -> Result<Vec<(LayerName, Curve)>> {
    let Task::Weights { method, pattern: uniform } = *trial.task else { return Ok(Vec::new()) };
    let patterns = tried(uniform);
    let mut curves = Vec::new();
    for input in &trial.package.inputs {
        let statistics = &*(trial.statistics)(input)?;
        let attempt = |pipeline: &Pipeline, pattern: Pattern| {
            let mut input = input.clone();
            input.layers.iter_mut().for_each(|layer| layer.pattern = Some(pattern));
            solve(pipeline, &input, method, statistics)
        };
        let errors = |outcome: &Outcome| outcome.layers.iter().map(|layer| layer.error).collect::<Vec<_>>();
        let base = attempt(pipeline, uniform)?;
        let of_base = errors(&base);
        // Of the other outcomes only the errors are kept.
        let mut of_patterns = Vec::with_capacity(patterns.len());
        for &pattern in &patterns {
            let errors = if pattern == uniform { of_base.clone() } else { errors(&attempt(pipeline, pattern)?) };
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
            let solved: Vec<(Pattern, f64)> =
                of_patterns.iter().map(|(pattern, errors)| (*pattern, factor * errors[index])).collect();
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
            let curve = Curve { choices, uniform: amount * uniform.sparsity(), influence: scale, at: Box::new(at) };
            curves.push((layer.name.clone(), curve));
        }
    }
    Ok(curves)
}

/// How many shares are solved for of each layer or group, at most.
#[must_use]
pub fn tries(task: &Task<'_>) -> usize {
    match task {
        Task::Weights { pattern, .. } => tried(*pattern).len(),
        Task::Structured { .. } => QUARTERS.count() + EIGHTHS.count(),
    }
}

/// The patterns that are solved for, the uniform one among them.
fn tried(uniform: Pattern) -> Vec<Pattern> {
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

/// Shares between those that were solved for: the logarithm of the error is linear between them.
fn between(solved: &[(Pattern, f64)]) -> Vec<(Pattern, f64)> {
    let all_shares = |(pattern, _): &(Pattern, f64)| matches!(pattern, Pattern::Unstructured(_));
    if !solved.iter().all(all_shares) || solved.len() < 2 {
        return solved.to_vec();
    }
    let floor = f64::MIN_POSITIVE;
    let (first, last) = (solved[0].0.sparsity(), solved[solved.len() - 1].0.sparsity());
    let at = |step: usize| {
        let share = first + (last - first) * step as f64 / GRID as f64;
        let above =
            solved.iter().position(|(pattern, _)| pattern.sparsity() >= share).unwrap_or(solved.len() - 1).max(1);
        let ((a, low), (b, high)) = (solved[above - 1], solved[above]);
        let place = (share - a.sparsity()) / (b.sparsity() - a.sparsity());
        let error = low.max(floor).ln() * (1.0 - place) + high.max(floor).ln() * place;
        (Pattern::Unstructured(share), error.exp())
    };
    (0..=GRID).map(at).collect()
}

fn group_curves(
    pipeline: &mut Pipeline,
    trial: &Trial<'_>,
    influence: &mut Influence,
    observer: &dyn Observer,
) -> Result<Vec<(LayerName, Curve)>> {
    let Task::Structured { method, removal } = *trial.task else { return Ok(Vec::new()) };
    let (folder, sampling) = (pipeline.folder().clone(), influence.sampling.clone());
    let total = |removals: &Removals| trial.amount.of(&folder, &sampling, removals);
    let before = total(pipeline.removals())?;
    let mut curves = Vec::new();
    for planned in trial.package.coupled.iter().flatten() {
        let group = &planned.group;
        let mut one = pipeline.removals().clone();
        one.remove(group.name(), group.count(), &[0]);
        let amount = before - total(&one)?;
        let most = MOST_OF_GROUP.max(removal.sparsity);
        let around = QUARTERS.map(|quarters| (removal.sparsity * quarters as f64 / 4.0).min(most));
        let over_all = EIGHTHS.map(|eighths| MOST_OF_GROUP * eighths as f64 / 8.0);
        let counts = around.chain(over_all).map(|sparsity| Removal { sparsity, ..removal }.count(group));
        let mut counts: Vec<usize> = counts.chain([planned.remove]).filter(|count| *count > 0).collect();
        counts.sort_unstable();
        counts.dedup();
        let attempt = |pipeline: &Pipeline, count: usize| {
            let planned = PlannedGroup { group: group.clone(), remove: count };
            remove(pipeline, &[planned], trial.package, method, trial.statistics)
        };
        let error = |outcome: &Outcome| {
            let of_layers = outcome.layers.iter().map(|layer| layer.error);
            of_layers.chain(outcome.groups.iter().filter_map(|group| group.error)).sum::<f64>()
        };
        let uniform = attempt(pipeline, planned.remove)?;
        let scale = influence.of(pipeline, uniform.edits.clone(), observer)?;
        let of_uniform = error(&uniform);
        let factor = scaled(scale, of_uniform);
        let nothing = Choice { setting: Setting::Remove(0), amount: 0.0, error: 0.0 };
        let mut choices = vec![nothing];
        for count in counts {
            let error = if count == planned.remove { of_uniform } else { error(&attempt(pipeline, count)?) };
            let (setting, amount) = (Setting::Remove(count), amount * count as f64);
            choices.push(Choice { setting, amount, error: factor * error });
        }
        let of_share = group.clone();
        let at = move |share: f64| {
            let count = Removal { sparsity: share, ..removal }.count(&of_share);
            (Setting::Remove(count), amount * count as f64)
        };
        let uniform = amount * planned.remove as f64;
        let curve = Curve { choices, uniform, influence: scale, at: Box::new(at) };
        curves.push((group.name().clone(), curve));
    }
    Ok(curves)
}

/// What a layer's error is multiplied by, if `error` of it has that influence.
fn scaled(influence: f64, error: f64) -> f64 {
    if error > 0.0 { influence / error } else { 0.0 }
}

/// The edit of one parameter.
fn only(outcome: &Outcome, parameter: &str) -> Edits {
    let weights = outcome.edits.weights.iter().filter(|(name, _)| *name == parameter);
    let weights = weights.map(|(name, weight)| (name.clone(), weight.clone())).collect();
    Edits { weights, removals: outcome.edits.removals.clone() }
}

/// How many pictures the influence of each layer or group is measured on, and how they are drawn.
#[must_use]
pub fn influence_pictures(calibration: &Calibration) -> (usize, Sampling) {
    (IMAGES.min(calibration.prompts.len()), influence_sampling(calibration))
}

/// A quarter of the steps.
pub(crate) fn influence_sampling(calibration: &Calibration) -> Sampling {
    let steps = calibration.sampling.steps;
    Sampling { steps: (steps / 4).max(steps.min(4)), ..calibration.sampling.clone() }
}

/// Measures what an edit does to pictures.
struct Influence {
    prompts: Vec<String>,
    sampling: Sampling,
    /// Latents of the model as it is, a tensor a batch.
    dense: Vec<Tensor>,
}

/// Heeds a wish to stop, and counts nothing.
struct Uncounted<'a>(&'a dyn Observer);

impl Observer for Uncounted<'_> {
    fn advance(&self, _: usize) -> secateur_models::Result<()> {
        self.0.advance(0)
    }
}

impl Influence {
    fn new(pipeline: &Pipeline, calibration: &Calibration, observer: &dyn Observer) -> Result<Self> {
        let (images, sampling) = influence_pictures(calibration);
        let mut influence = Self { prompts: calibration.prompts[..images].to_vec(), sampling, dense: Vec::new() };
        influence.dense = influence.draw(pipeline, observer)?;
        Ok(influence)
    }

    fn draw(&self, pipeline: &Pipeline, observer: &dyn Observer) -> Result<Vec<Tensor>> {
        let draw = |images| pipeline.sample(&self.prompts, images, &self.sampling, None, &Uncounted(observer));
        Ok(self.sampling.batches(self.prompts.len()).map(draw).collect::<secateur_models::Result<_>>()?)
    }

    /// ||z' - z||^2 / ||z||^2 for the latents z, with the edit alone; the pipeline is then as it was.
    fn of(&mut self, pipeline: &mut Pipeline, edits: Edits, observer: &dyn Observer) -> Result<f64> {
        let kept =
            edits.weights.keys().filter_map(|name| Some((name.clone(), pipeline.parameters().get(name)?.clone())));
        let kept = Edits { weights: kept.collect(), removals: pipeline.removals().clone() };
        pipeline.apply(&edits)?;
        let changed = self.draw(pipeline, observer);
        pipeline.apply(&kept)?;
        observer.advance(1)?;
        let square = |tensor: &Tensor| Ok::<f64, Error>(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?));
        let (mut difference, mut total) = (0.0, 0.0);
        for (changed, dense) in changed?.iter().zip(&self.dense) {
            difference += square(&(changed - dense)?)?;
            total += square(dense)?;
        }
        Ok(difference / total.max(f64::MIN_POSITIVE))
    }
}

/// Lets every curve begin at its first choice, and then the one go on that pays least a unit of amount, until `total` is
/// removed. A step goes to the choice further on that is cheapest by that measure, as dents in a curve are not worth
/// stopping at.
fn greedy(curves: &BTreeMap<LayerName, Curve>, total: f64) -> Settings {
    let mut at: BTreeMap<&LayerName, usize> = curves.keys().map(|name| (name, 0)).collect();
    let first = curves.values().filter_map(|curve| curve.choices.first());
    let mut left = total - first.map(|choice| choice.amount).sum::<f64>();
    loop {
        let step = |(name, Curve { choices, .. }): (&'_ LayerName, &Curve)| {
            let here = at[name];
            let next = (here + 1..choices.len()).filter_map(|next| {
                let amount = choices[next].amount - choices[here].amount;
                let price = (choices[next].error - choices[here].error) / amount;
                (amount > 0.0 && amount <= left * (1.0 + 1e-9)).then_some((price, next, amount))
            });
            next.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(price, next, amount)| (price, name.clone(), next, amount))
        };
        let Some((_, name, next, amount)) = curves.iter().filter_map(step).min_by(|a, b| a.0.total_cmp(&b.0)) else {
            break;
        };
        if let Some(place) = at.get_mut(&name) {
            *place = next;
        }
        left -= amount;
    }
    at.into_iter().map(|(name, place)| (name.clone(), curves[name].choices[place].setting)).collect()
}

/// Shares in proportion to exp(-s / mean of s) for the influences s, none more than the most of a group, and so large that they
/// remove `total`.
fn softmax(curves: &BTreeMap<LayerName, Curve>, total: f64) -> Settings {
    let mean = curves.values().map(|curve| curve.influence).sum::<f64>() / curves.len().max(1) as f64;
    let share = |curve: &Curve, factor: f64| {
        let exponent = if mean > 0.0 { -curve.influence / mean } else { 0.0 };
        (factor * exponent.exp()).min(MOST_OF_GROUP)
    };
    let removed = |factor: f64| curves.values().map(|curve| (curve.at)(share(curve, factor)).1).sum::<f64>();
    // Shares only grow with the factor.
    let (mut low, mut high) = (0.0, 1.0);
    while removed(high) < total && high < 1e9 {
        high *= 2.0;
    }
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if removed(middle) <= total * (1.0 + 1e-9) { low = middle } else { high = middle }
    }
    curves.iter().map(|(name, curve)| (name.clone(), (curve.at)(share(curve, low)).0)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Choice, Curve, Pattern, Setting, between, greedy, softmax, tried};
    use std::collections::BTreeMap;

    /// Of a hundred numbers.
    fn curve(choices: Vec<Choice>, influence: f64) -> Curve {
        let at = |share: f64| {
            let count = (100.0 * share).round() as usize;
            (Setting::Remove(count), count as f64)
        };
        Curve { choices, uniform: 0.0, influence, at: Box::new(at) }
    }

    #[test]
    fn shares_fall_with_the_influence_and_remove_the_total() {
        let curves: BTreeMap<_, _> = [("a", 0.0), ("b", 1.0), ("c", 2.0)]
            .map(|(name, influence)| (name.into(), curve(Vec::new(), influence)))
            .into();
        for total in [0.0, 30.0, 100.0, 200.0] {
            let shares: Vec<usize> = softmax(&curves, total)
                .into_values()
                .map(|setting| match setting {
                    Setting::Remove(count) => count,
                    Setting::Pattern(_) => unreachable!(),
                })
                .collect();
            let removed: usize = shares.iter().sum();
            assert!((removed as f64 - total).abs() <= 2.0, "{removed} of {total}");
            assert!(shares.is_sorted_by(|a, b| a >= b) && shares[0] <= 80, "{shares:?}");
            // e apart, as the mean influence is 1.
            if total == 30.0 {
                assert_eq!(shares, [20, 7, 3]);
            }
        }
        // More than there is to take.
        assert_eq!(softmax(&curves, 1e6).into_values().collect::<Vec<_>>(), [Setting::Remove(80); 3]);
    }

    #[test]
    fn what_pays_least_goes_first_until_the_budget_is_removed() {
        let curve = |errors: &[f64]| {
            let choice =
                |(i, error): (usize, &f64)| Choice { setting: Setting::Remove(i), amount: i as f64, error: *error };
            curve(errors.iter().enumerate().map(choice).collect(), 0.0)
        };
        // The second one has a dent: two steps cost less than one.
        let curves =
            BTreeMap::from([("a".into(), curve(&[0.0, 1.0, 3.0])), ("b".into(), curve(&[0.0, 1.5, 1.6, 9.0]))]);
        for (budget, a, b) in [(0.0, 0, 0), (1.0, 1, 0), (2.0, 0, 2), (3.0, 1, 2), (4.0, 2, 2), (9.0, 2, 3)] {
            let settings = greedy(&curves, budget);
            let want = [Setting::Remove(a), Setting::Remove(b)];
            assert_eq!([settings["a"], settings["b"]], want, "a budget of {budget}");
        }
    }

    #[test]
    fn shares_between_solved_ones_are_on_a_line_of_logarithms() {
        let solved: Vec<(Pattern, f64)> =
            tried(Pattern::Unstructured(0.5)).into_iter().map(|p| (p, (7.0 * p.sparsity()).exp())).collect();
        assert_eq!(solved.len(), 5);
        for (pattern, error) in between(&solved) {
            let want = (7.0 * pattern.sparsity()).exp();
            assert!((error / want - 1.0).abs() < 1e-9, "{pattern}: {error}, {want}");
        }
        // Pieces of different slopes, 0.4 apart in all: the grid of 48 steps meets each solved share.
        let solved = [(0.2, 1e-4), (0.5, 1e-2), (0.6, 1.0)].map(|(share, error)| (Pattern::Unstructured(share), error));
        let curve = between(&solved);
        let ends = [(curve[0], solved[0]), (curve[36], solved[1]), (curve[48], solved[2])];
        for ((pattern, error), (share, want)) in ends {
            assert!((pattern.sparsity() - share.sparsity()).abs() < 1e-12 && (error / want - 1.0).abs() < 1e-9);
        }
        for (step, share, want) in [(9, 0.275, 10f64.powf(-3.5)), (18, 0.35, 1e-3), (42, 0.55, 0.1)] {
            let (pattern, error) = curve[step];
            assert!(
                (pattern.sparsity() - share).abs() < 1e-12 && (error / want - 1.0).abs() < 1e-9,
                "{pattern}: {error}"
            );
        }
        assert!(curve.len() == 49 && curve.is_sorted_by(|a, b| a.0.sparsity() < b.0.sparsity() && a.1 < b.1));
        // What is dead costs nothing anywhere.
        assert!(between(&solved.map(|(pattern, _)| (pattern, 0.0))).iter().all(|(_, error)| *error < 1e-300));
        let patterns = tried("2:4".parse().unwrap());
        assert_eq!(patterns.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1:4", "2:4", "3:4"]);
        assert_eq!(tried(Pattern::Unstructured(0.9)).last().map(Pattern::sparsity), Some(0.95));
    }
}
