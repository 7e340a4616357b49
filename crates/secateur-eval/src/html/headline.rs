//! A summary of the run in one sentence, without technical terms.

use crate::html::format::{counted, fixed, percent};
use crate::report::{Comparison, GroupReport, LayerReport, ModelSummary, Report};
/// Returns a sentence on what was changed and how much pictures differ, from the figures of the
/// report.
pub(super) fn sentence(report: &Report) -> String {
    let mut clauses: Vec<String> = Vec::new();
    let models = compared(report);
    if let Some(skipping) = &report.skipping {
        clauses.push(format!("of the work of a run {} is left", percent(skipping.kept)));
    }
    match removed_groups(&report.groups) {
        Some(clause) => clauses.push(clause),
        None => clauses.extend(removed_weights(&report.layers, models)),
    }
    clauses.extend(models.and_then(|(reference, candidate)| smaller(reference, candidate)));
    if let Some(comparison) = &report.comparison {
        clauses.push(likeness(comparison));
        clauses.extend(text_image(comparison));
    }
    if clauses.is_empty() {
        clauses.push(format!(
            "no model was changed or compared in {}",
            counted(report.stages.len(), "stage")
        ));
    }
    let mut sentence = clauses.join("; ");
    if let Some(first) = sentence.chars().next() {
        sentence.replace_range(..first.len_utf8(), &first.to_uppercase().to_string());
    }
    sentence + "."
}

/// Returns the reference and the candidate: the first and the last model.
pub(super) fn compared(report: &Report) -> Option<(&ModelSummary, &ModelSummary)> {
    match report.models.as_slice() {
        [first, .., last] => Some((first, last)),
        _ => None,
    }
}

/// Returns the share of the weights of `layers` that are zero or removed.
pub(super) fn mean_sparsity<'a>(layers: impl IntoIterator<Item = &'a LayerReport>) -> f64 {
    let (mut removed, mut total) = (0.0, 0.0);
    for layer in layers {
        let weights = layer.rows as f64 * layer.columns as f64;
        removed += layer.sparsity * weights;
        total += weights;
    }
    removed / total
}

fn removed_groups(groups: &[GroupReport]) -> Option<String> {
    let of = |kind: &str| {
        let sum = |value: fn(&GroupReport) -> usize| -> usize {
            groups.iter().filter(|group| group.kind == kind).map(value).sum()
        };
        let (removed, count) = (sum(|group| group.removed), sum(|group| group.count));
        (removed > 0).then(|| format!("{removed} of {count} {kind}"))
    };
    let mut kinds: Vec<&str> = Vec::new();
    for GroupReport { kind, .. } in groups {
        if !kinds.contains(&kind.as_str()) {
            kinds.push(kind);
        }
    }
    let kinds: Vec<String> = kinds.into_iter().filter_map(of).collect();
    let modules = groups.iter().filter(|group| group.removed > 0).count();
    let (last, others) = kinds.split_last()?;
    let kinds =
        if others.is_empty() { last.clone() } else { format!("{} and {last}", others.join(", ")) };
    Some(format!("{kinds} of {} have been removed", counted(modules, "module")))
}

fn removed_weights(
    layers: &[LayerReport],
    models: Option<(&ModelSummary, &ModelSummary)>,
) -> Option<String> {
    let changed: Vec<_> = layers.iter().filter(|layer| layer.sparsity > 0.0).collect();
    if changed.is_empty() {
        return None;
    }
    let share = share_in_words(mean_sparsity(changed.iter().copied()));
    // Weights of removed rows and columns are not in the file any more, so they are not zeros.
    let gone =
        models.is_some_and(|(reference, candidate)| candidate.parameters < reference.parameters);
    let state = if gone { "have been removed" } else { "are zero" };
    Some(format!("{share} of the weights of {} {state}", counted(changed.len(), "layer")))
}

fn share_in_words(share: f64) -> String {
    let words = [
        (0.25, "a quarter"),
        (1.0 / 3.0, "a third"),
        (0.5, "half"),
        (2.0 / 3.0, "two thirds"),
        (0.75, "three quarters"),
    ];
    let near = words.iter().find(|(value, _)| (value - share).abs() < 0.002);
    near.map_or_else(|| percent(share), |(_, words)| (*words).to_owned())
}

fn smaller(reference: &ModelSummary, candidate: &ModelSummary) -> Option<String> {
    let mut savings = Vec::new();
    if candidate.parameters < reference.parameters {
        let share = 1.0 - candidate.parameters as f64 / reference.parameters as f64;
        savings.push(format!("holds {} fewer parameters", percent(share)));
    }
    if candidate.macs < reference.macs {
        let share = 1.0 - candidate.macs as f64 / reference.macs as f64;
        savings.push(format!("does {} less arithmetic", percent(share)));
    }
    (!savings.is_empty())
        .then(|| format!("{} {} than {}", candidate.name, savings.join(" and "), reference.name))
}

fn likeness(comparison: &Comparison) -> String {
    let over = match comparison.prompts.len() {
        0 => String::new(),
        1 => ", for one prompt".to_owned(),
        count => format!(", on average over {}", counted(count, "prompt")),
    };
    format!(
        "the pictures of {} agree with those of {} to {} dB PSNR and {} SSIM (100 and 1 if \
         equal){over}",
        comparison.candidate,
        comparison.reference,
        fixed(comparison.psnr.mean, 1),
        fixed(comparison.ssim.mean, 3),
    )
}

fn text_image(comparison: &Comparison) -> Option<String> {
    let scores = comparison.text_image.as_ref()?;
    Some(format!(
        "shown a picture, {} picks its prompt out of {} in {} of cases, against {} before",
        scores.model,
        scores.choices,
        percent(scores.top1_candidate),
        percent(scores.top1_reference),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_in_words() {
        assert_eq!(share_in_words(0.5), "half");
        assert_eq!(share_in_words(0.4995), "half");
        assert_eq!(share_in_words(0.49), "49.0 %");
        assert_eq!(share_in_words(2.0 / 3.0), "two thirds");
    }

    #[test]
    fn sparsity_is_weighted_by_size() {
        let layer = |rows, sparsity| LayerReport {
            name: String::new(),
            rows,
            columns: 2,
            sparsity,
            error: 0.0,
            damping: 0.0,
            package: 0,
        };
        assert!((mean_sparsity(&[layer(1, 1.0), layer(3, 0.0)]) - 0.25).abs() < 1e-15);
    }
}
