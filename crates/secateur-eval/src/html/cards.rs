//! The key figures, each with a line that explains it.

use crate::html::format::{bytes, count, fixed, percent};
use crate::html::headline::compared;
use crate::report::{Comparison, ModelSummary, PromptRow, Report, TextImage};
use crate::summary::Summary;
use maud::{Markup, html};

/// Width and height of a strip, in the units of the SVG.
const STRIP: (f64, f64) = (200.0, 16.0);

pub(super) fn section(report: &Report) -> Markup {
    let models = compared(report);
    html! {
        @if report.comparison.is_some() || models.is_some() {
            section aria-labelledby="figures" {
                h2 #figures { "Key figures" }
                div.cards {
                    @if let Some(comparison) = &report.comparison {
                        (comparison_cards(comparison))
                        @if let Some(scores) = &comparison.text_image { (text_image_cards(scores)) }
                    }
                    @if let Some((reference, candidate)) = models { (model_cards(reference,
                        candidate)) }
                }
            }
        }
    }
}

fn comparison_cards(comparison: &Comparison) -> Markup {
    let values = |of: fn(&PromptRow) -> f64| comparison.prompts.iter().map(of).collect::<Vec<_>>();
    html! {
        (metric("PSNR", &comparison.psnr, " dB", 1, &values(|row| row.psnr), html! {
            "How close the pictures are, pixel by pixel, on a logarithmic scale. "
            "Higher is closer: at 20 a difference shows, above 35 it is hard to see, equal \
             pictures count as 100."
        }))
        (metric("SSIM", &comparison.ssim, "", 3, &values(|row| row.ssim), html! {
            "How alike shapes and contrasts are, seen through small windows. 1 means equal, 0 \
             means unrelated."
        }))
        (metric("Latent \
            error", &comparison.latent_error, "", 3, &values(|row| row.latent_error), html! {
            "How far the model's raw output is from the reference's, before it is decoded into a \
             picture. "
            "0 means equal, 1 means as far away as an output of zeros."
        }))
    }
}

fn text_image_cards(scores: &TextImage) -> Markup {
    let chance = 1.0 / scores.choices.max(1) as f64;
    html! {
        (change(
            "Text-image score",
            fixed(scores.score_reference.mean, 3),
            fixed(scores.score_candidate.mean, 3),
            signed(scores.score_candidate.mean - scores.score_reference.mean, 3),
            html! { "How well the pictures fit their prompts in the eyes of " (scores.model) ". \
                Higher is better." },
        ))
        (change(
            "Top-1",
            percent(scores.top1_reference),
            percent(scores.top1_candidate),
            format!("{} percentage \
                points", signed((scores.top1_candidate - scores.top1_reference) * 100.0, 1)),
            html! {
                "How often " (scores.model) " picks the right prompt for a picture out of \
                 " (scores.choices)
                ". Guessing would give " (percent(chance)) "."
            },
        ))
    }
}

fn model_cards(reference: &ModelSummary, candidate: &ModelSummary) -> Markup {
    let zeros = |model: &ModelSummary| model.zeros as f64 / model.parameters.max(1) as f64;
    html! {
        (change(
            "Zeros",
            percent(zeros(reference)),
            percent(zeros(candidate)),
            format!("{} of {} parameters", count(candidate.zeros), count(candidate.parameters)),
            html! { "Share of the denoiser's parameters that are exactly zero. Formats and kernels \
                that know of them can skip them." },
        ))
        @if reference.parameters != candidate.parameters {
            (change(
                "Parameters",
                count(reference.parameters),
                count(candidate.parameters),
                relative(reference.parameters, candidate.parameters),
                html! { "Numbers that the denoiser stores." },
            ))
        }
        (change(
            "Arithmetic",
            format!("{}MAC", spaced(reference.macs)),
            format!("{}MAC", spaced(candidate.macs)),
            relative(reference.macs, candidate.macs),
            html! { "Multiply-accumulate operations (MAC) of one denoising step, counting those \
                with zeros." },
        ))
        @if let (Some(before), Some(after), true) =
            (reference.step_seconds, candidate.step_seconds, candidate.macs < reference.macs)
        {
            (change(
                "Time of a step",
                format!("{:.1} ms", 1e3 * before),
                format!("{:.1} ms", 1e3 * after),
                format!("{:.2} times less", before / after),
                html! { "Median of a denoising step for one of these pictures: processor time over \
                    all threads, or a GPU's time." },
            ))
        }
        (change(
            "Size",
            bytes(reference.file_bytes),
            bytes(candidate.file_bytes),
            relative(reference.file_bytes, candidate.file_bytes),
            html! { "The model's files on disk. Zeros that are stored as zeros do not make files \
                smaller." },
        ))
    }
}

/// Formats a count to stand before a unit, which follows a decimal prefix directly, and a plain
/// number after a space.
fn spaced(number: u64) -> String {
    let text = count(number);
    if text.contains(' ') { text } else { text + " " }
}

/// Formats a difference with its sign, using a minus sign instead of a hyphen.
fn signed(difference: f64, decimals: usize) -> String {
    if !difference.is_finite() {
        return fixed(difference, decimals);
    }
    format!("{difference:+.decimals$}").replace('-', "−")
}

/// Formats the change from `reference` to `candidate` in per cent.
fn relative(reference: u64, candidate: u64) -> String {
    if reference == candidate {
        return "unchanged".into();
    }
    format!("{} %", signed((candidate as f64 / reference.max(1) as f64 - 1.0) * 100.0, 1))
}

fn metric(
    name: &str,
    summary: &Summary,
    unit: &str,
    decimals: usize,
    values: &[f64],
    explanation: Markup,
) -> Markup {
    html! {
        article.card {
            h3 { (name) }
            p.figure { (fixed(summary.mean, decimals)) span.unit { (unit) } }
            p.detail {
                (fixed(summary.minimum, decimals)) " to " (fixed(summary.maximum, decimals))
                ", spread ± " (fixed(summary.standard_deviation, decimals))
            }
            @if values.len() > 1 { (strip(name, summary, values)) }
            p.explanation { (explanation) }
        }
    }
}

/// Draws one tick per prompt between the smallest and the largest value, and a taller tick at the
/// mean.
fn strip(name: &str, summary: &Summary, values: &[f64]) -> Markup {
    let (width, height) = STRIP;
    let range = summary.maximum - summary.minimum;
    let place = |value: f64| {
        let share = if range > 0.0 { (value - summary.minimum) / range } else { 0.5 };
        format!("{:.1}", 2.0 + share * (width - 4.0))
    };
    let label = format!("{name} of {} prompts, one tick each, the mean marked", values.len());
    html! {
        svg.strip viewBox=(format!("0 0 {width} \
            {height}")) preserveAspectRatio="none" role="img" aria-label=(label) {
            @for &value in values.iter().filter(|value| value.is_finite()) {
                line x1=(place(value)) x2=(place(value)) y1="5" y2=(height) {}
            }
            @if summary.mean.is_finite() {
                line.mean x1=(place(summary.mean)) x2=(place(summary.mean)) y1="0" y2=(height) {}
            }
        }
    }
}

fn change(
    name: &str,
    before: String,
    after: String,
    difference: String,
    explanation: Markup,
) -> Markup {
    html! {
        article.card {
            h3 { (name) }
            @if before == after {
                p.figure { (after) }
            } @else {
                p.figure { span.before { (before) } span.arrow aria-label="became" { "→" } (after) }
            }
            p.detail { (difference) }
            p.explanation { (explanation) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_in_per_cent() {
        assert_eq!(relative(200, 150), "−25.0 %");
        assert_eq!(relative(0, 0), "unchanged");
        assert_eq!(spaced(1_500_000) + "MAC", "1.50 MMAC");
        assert_eq!(spaced(15) + "MAC", "15 MAC");
    }
}
