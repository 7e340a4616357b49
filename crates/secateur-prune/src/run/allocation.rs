//! Allocation: how much is removed from each layer, at the same total. Layers that matter more lose
//! less.

use crate::calibration::{Calibration, calibrate};
use crate::error::Result;
use crate::methods::Task;
use crate::plan::{Plan, SharedInput};
use crate::run::budget::MOST_OF_GROUP;
use crate::run::curves::{Curve, Trial, group_curves, weight_curves};
use crate::run::influence::Influence;
use crate::run::outcome::Statistics;
use crate::run::setting::{Allocation, Budget, Settings};
use crate::run::source::Source;
use secateur_models::{Observer, Pipeline};
use secateur_nn::LayerName;
use std::collections::BTreeMap;

/// Finds the settings of least error that remove the same total as `plan`, which has the same share
/// everywhere. Also returns the statistics that it gathered, if the plan has one package and
/// `source` is a calibration. `calibration` has the prompts that pictures are drawn from.
///
/// The error of a layer is computed at a few shares by pruning it with the method, see
/// [`hessian_error`](crate::hessian_error). Between these shares its logarithm is linear. The
/// effect on pictures is measured once per layer: the model with only that layer pruned, at the
/// uniform share, draws four of the calibration prompts in a quarter of the steps. The squared
/// difference of the latents is the layer's influence, and the layer's errors are scaled to it.
/// Then layers are pruned further step by step, each time the one whose error rises least per unit
/// of amount. The sum assumes that errors of layers add up.
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
            gathered =
                calibrate(pipeline, package, calibration, step_weights, sums, &stage, observer)?;
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

/// Starts every curve at its first choice, and then moves the curve whose error rises least per
/// unit of amount, until `total` is removed. A move goes to the later choice that is cheapest by
/// that measure, so that it skips dents in a curve.
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
            next.min_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(price, next, amount)| (price, name.clone(), next, amount))
        };
        let Some((_, name, next, amount)) =
            curves.iter().filter_map(step).min_by(|a, b| a.0.total_cmp(&b.0))
        else {
            break;
        };
        if let Some(place) = at.get_mut(&name) {
            *place = next;
        }
        left -= amount;
    }
    at.into_iter()
        .map(|(name, place)| (name.clone(), curves[name].choices[place].setting))
        .collect()
}

/// Chooses shares in proportion to exp(-s / mean of s) for the influences s, none above the limit
/// of a group, scaled so that they remove `total`.
fn softmax(curves: &BTreeMap<LayerName, Curve>, total: f64) -> Settings {
    let mean =
        curves.values().map(|curve| curve.influence).sum::<f64>() / curves.len().max(1) as f64;
    let share = |curve: &Curve, factor: f64| {
        let exponent = if mean > 0.0 { -curve.influence / mean } else { 0.0 };
        (factor * exponent.exp()).min(MOST_OF_GROUP)
    };
    let removed =
        |factor: f64| curves.values().map(|curve| (curve.at)(share(curve, factor)).1).sum::<f64>();
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
    use super::{greedy, softmax};
    use crate::run::curves::{Choice, Curve};
    use crate::run::setting::Setting;
    use std::collections::BTreeMap;

    /// A curve of a hundred numbers.
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
        assert_eq!(
            softmax(&curves, 1e6).into_values().collect::<Vec<_>>(),
            [Setting::Remove(80); 3]
        );
    }

    #[test]
    fn what_pays_least_goes_first_until_the_budget_is_removed() {
        let curve = |errors: &[f64]| {
            let choice = |(i, error): (usize, &f64)| Choice {
                setting: Setting::Remove(i),
                amount: i as f64,
                error: *error,
            };
            curve(errors.iter().enumerate().map(choice).collect(), 0.0)
        };
        // The second one has a dent: two steps cost less than one.
        let curves = BTreeMap::from([
            ("a".into(), curve(&[0.0, 1.0, 3.0])),
            ("b".into(), curve(&[0.0, 1.5, 1.6, 9.0])),
        ]);
        for (budget, a, b) in
            [(0.0, 0, 0), (1.0, 1, 0), (2.0, 0, 2), (3.0, 1, 2), (4.0, 2, 2), (9.0, 2, 3)]
        {
            let settings = greedy(&curves, budget);
            let want = [Setting::Remove(a), Setting::Remove(b)];
            assert_eq!([settings["a"], settings["b"]], want, "a budget of {budget}");
        }
    }
}
