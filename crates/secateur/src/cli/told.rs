//! Text output of results.

use crate::cli::print::{print, with_flags};
use anyhow::Result;
use secateur::format::{count, table};
use secateur::{Converted, Exported, Generated, Report, Share};
use secateur_eval::{Comparison, Stage};
use secateur_models::files::shown;
use std::path::Path;

/// Prints the report of a new model, which was written to `out`.
pub(crate) fn new_model(report: &Report, out: Option<&Path>) -> Result<()> {
    if let Some(comparison) = &report.comparison {
        print(&quality(comparison))?;
    }
    if let [before, after] = report.models.as_slice()
        && after.parameters < before.parameters
    {
        let of = |after: u64, before: u64| format!("{} ({} before)", count(after), count(before));
        print(&format!("  parameters    {}", of(after.parameters, before.parameters)))?;
        print(&format!("  MACs a call   {}", of(after.macs, before.macs)))?;
        if let (Some(after), Some(before)) = (after.step_seconds, before.step_seconds) {
            let (millis, faster) = ([after, before].map(|seconds| 1e3 * seconds), before / after);
            let [after, before] = millis.map(|millis| format!("{millis:.1} ms"));
            let device = if report.settings.contains_key("device") { "GPU" } else { "CPU" };
            let of_step = format!("{after} ({before} before): {faster:.2} times less");
            print(&format!("  {device} a step    {of_step}"))?;
        }
    }
    let calibrated = |stage: &Stage| stage.floor_seconds.map(|floor| (stage.seconds, floor));
    if let Some((seconds, floor)) = report.stages.iter().find_map(calibrated) {
        print(&format!(
            "  calibration   {seconds:.0} s, {:.1} times what its products take at this machine's \
             rate",
            seconds / floor
        ))?;
    }
    let of_layers: Vec<f64> = report.layers.iter().map(|layer| layer.error).collect();
    let of_products: Vec<f64> = report.groups.iter().filter_map(|group| group.error).collect();
    let of_attentions: Vec<f64> =
        report.groups.iter().filter_map(|group| group.module_error).collect();
    let all = [
        ("layer error  ", of_layers),
        ("product error", of_products),
        ("attentions'  ", of_attentions),
    ];
    for (what, errors) in all {
        if !errors.is_empty() {
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            let worst = errors.iter().copied().fold(0.0, f64::max);
            print(&format!("  {what} {mean:.4} mean, {worst:.4} largest"))?;
        }
    }
    if let Some(skipping) = &report.skipping {
        report.notes.iter().try_for_each(|note| print(&with_flags(note)))?;
        for way in &skipping.ways {
            let faster =
                way.speed_up.map_or(String::new(), |faster| format!(", {faster:.2} times faster"));
            print(&format!(
                "  {:<44} {:.2} dB, SSIM {:.3}, {:.1} % of the MACs{faster}",
                way.name,
                way.psnr,
                way.ssim,
                100.0 * way.kept
            ))?;
        }
    }
    match out {
        Some(out) => {
            print(&format!("model: {}\nreport: {}", shown(out), shown(&out.join("report.html"))))
        }
        None => Ok(()),
    }
}

/// Prints the comparison of two models, and the folder of the report.
pub(crate) fn compared(report: &Report, out: Option<&Path>) -> Result<()> {
    if let Some(comparison) = &report.comparison {
        print(&quality(comparison))?;
    }
    match out {
        Some(out) => print(&format!("report: {}", shown(&out.join("report.html")))),
        None => Ok(()),
    }
}

/// Formats the scores in a few lines.
fn quality(comparison: &Comparison) -> String {
    let mut lines = vec![
        format!(
            "pictures of {}, from the same noise as {}:",
            comparison.candidate, comparison.reference
        ),
        format!("  PSNR          {:.2} dB", comparison.psnr.mean),
        format!("  SSIM          {:.4}", comparison.ssim.mean),
        format!("  latent error  {:.4}", comparison.latent_error.mean),
    ];
    if let Some(text) = &comparison.text_image {
        let (before, after) = (text.score_reference.mean, text.score_candidate.mean);
        lines.push(format!("  text-image    {after:.4} ({before:.4} before), by {}", text.model));
        let (before, after) = (100.0 * text.top1_reference, 100.0 * text.top1_candidate);
        lines.push(format!("  top-1 of {:<4} {after:.1} % ({before:.1} % before)", text.choices));
    }
    lines.join("\n")
}

/// Prints the pictures that were drawn.
pub(crate) fn drawn(generated: &Generated, out: &Path) -> Result<()> {
    if let Some(shares) = &generated.operations {
        let row = |share: &Share| {
            vec![
                share.operation.to_owned(),
                format!("{:.2} s", share.seconds),
                format!("{:.1} %", share.share * 100.0),
            ]
        };
        let rows: Vec<_> = shares.iter().map(row).collect();
        print(&table(&["operation", "time", "share"], &rows))?;
    }
    let (images, seconds) = (generated.images.len(), generated.seconds);
    print(&format!("{images} images in {seconds:.1} s: {}", shown(out)))
}

/// Prints the conversion of a checkpoint `file` to a model folder, with components that the file
/// lacks from the folder `like`.
pub(crate) fn converted(converted: &Converted, file: &Path, like: &Path) -> Result<()> {
    let Converted { kind, converted, copied, model, .. } = converted;
    print(&format!("{kind}: {} from {}", converted.join(", "), shown(file)))?;
    if !copied.is_empty() {
        print(&format!("{} from {}", copied.join(", "), shown(like)))?;
    }
    print(&format!("model: {}", shown(model)))
}

/// Prints the export of a model at full size.
pub(crate) fn exported(exported: &Exported) -> Result<()> {
    let Exported { tensors, groups, out, .. } = exported;
    print(&format!("{tensors} tensors of {groups} modules at full size again: {}", shown(out)))
}
