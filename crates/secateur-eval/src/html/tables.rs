//! Tables of the models, the stages, and the settings to repeat the run.

use crate::html::format::{bytes, count, duration, grouped, percent};
use crate::html::table::{numbers, share, table, words};
use crate::report::{GroupReport, ModelSummary, Report, Stage};
use maud::{Markup, html};
use serde_json::Value;

pub(super) fn groups(groups: &[GroupReport]) -> Markup {
    let errors = groups.iter().any(|group| group.error.is_some());
    let whole = groups.iter().all(|group| ["heads", "neurons"].contains(&group.kind.as_str()));
    let mut columns =
        vec![words("Module"), numbers("Before"), numbers("Now"), words("Share that is left")];
    if errors {
        columns.extend(["Error of the product", "Error of the attention"].map(numbers));
    }
    html! {
        @if !groups.is_empty() {
            section aria-labelledby="groups" {
                h2 #groups { @if whole { "Heads and neurons" } @else { "Modules" } }
                p { "What is gone for good: the layers before and after them are smaller by \
                    these." }
                (table(&columns, groups.iter().map(|group| group_row(group, errors)), None))
            }
        }
    }
}

fn group_row(group: &GroupReport, errors: bool) -> Markup {
    let left = group.count.saturating_sub(group.removed);
    html! {
        tr {
            th scope="row" { (group.name) }
            td.number { (group.count) " " (group.kind.rsplit(' ').next().unwrap_or_default()) }
            td.number { (left) }
            (share(left as f64 / group.count.max(1) as f64, 70.0))
            @if errors { @for error in [group.error, group.module_error] {
                td.number { @if let Some(error) = error { (format!("{error:.4}")) } }
            } }
        }
    }
}

pub(super) fn models(models: &[ModelSummary]) -> Markup {
    let [parameters, zeros, macs, files] =
        ["Denoiser parameters", "Zeros", "MACs a step", "Files"].map(numbers);
    let columns = [words("Model"), parameters, zeros, macs, files];
    html! {
        @if !models.is_empty() {
            section aria-labelledby="models" {
                h2 #models { "Models" }
                (table(&columns, models.iter().map(model_row), None))
            }
        }
    }
}

fn model_row(model: &ModelSummary) -> Markup {
    let zeros = model.zeros as f64 / model.parameters.max(1) as f64;
    html! {
        tr {
            th scope="row" { (model.name) }
            td.number { (grouped(model.parameters)) }
            td.number { (grouped(model.zeros)) " (" (percent(zeros)) ")" }
            td.number { (count(model.macs)) }
            td.number { (bytes(model.file_bytes)) }
        }
    }
}

pub(super) fn stages(report: &Report) -> Markup {
    let total: f64 = report.stages.iter().map(|stage| stage.seconds).sum();
    let columns = [
        words("Stage"),
        numbers("Time"),
        words("Share of the time"),
        numbers("At the rate of products"),
        numbers("Peak memory"),
    ];
    let foot = html! {
        tr {
            th scope="row" { "Whole run" }
            td.number { (duration(total)) }
            td {}
            td {}
            td.number { (bytes(report.peak_bytes)) }
        }
    };
    html! {
        @if !report.stages.is_empty() {
            section aria-labelledby="stages" {
                h2 #stages { "Stages" }
                (table(&columns, report.stages.iter().map(|s| stage_row(s, total)), Some(foot)))
            }
        }
    }
}

fn stage_row(stage: &Stage, total: f64) -> Markup {
    html! {
        tr {
            th scope="row" { (stage.name) }
            td.number { (duration(stage.seconds)) }
            (share(if total > 0.0 { stage.seconds / total } else { 0.0 }, 80.0))
            td.number { @if let Some(floor) = stage.floor_seconds { (duration(floor)) } }
            td.number { (bytes(stage.peak_bytes)) }
        }
    }
}

pub(super) fn run(report: &Report) -> Markup {
    html! {
        section aria-labelledby="run" {
            h2 #run { "How to repeat it" }
            pre { code { (report.command) } }
            div.scroll {
                table.settings {
                    tbody {
                        (setting("secateur", html! { (report.secateur_version) }))
                        (setting("seed", html! { (report.seed) }))
                        @if let Some(comparison) = &report.comparison {
                            (setting("denoising steps", html! { (comparison.steps) }))
                            (setting("guidance scale", html! { (comparison.guidance) }))
                        }
                        @for (name, value) in &report.settings {
                            (setting(name, html! { (plain(value)) }))
                        }
                    }
                }
            }
        }
    }
}

fn setting(name: &str, value: Markup) -> Markup {
    html! { tr { th scope="row" { (name) } td { (value) } } }
}

/// Formats a setting as plain text: strings without quotes, lists with commas, switches as yes or
/// no.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values)
            if values.iter().all(|value| !value.is_array() && !value.is_object()) =>
        {
            values.iter().map(plain).collect::<Vec<_>>().join(", ")
        }
        Value::Null => "none".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        other => other.to_string(),
    }
}
