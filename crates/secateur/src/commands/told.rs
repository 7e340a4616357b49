//! What is printed of a report.

use super::compare::quality;
use crate::args::Common;
use crate::format::{count, print, print_json};
use crate::progress::say;
use anyhow::Result;
use secateur_eval::{Report, Stage};
use secateur_models::OutputFolder;
use secateur_models::files::{Limit, read_json, shown};
use std::path::Path;

/// The report of a run that had come to its end before it was resumed.
pub(super) fn finished(output: &OutputFolder) -> Result<Report> {
    say(&format!("{} is complete: nothing is left to do", shown(output.target())));
    report_in(output.target())
}

/// The report in a folder.
pub(super) fn report_in(folder: &Path) -> Result<Report> {
    Ok(read_json(&folder.join("report.json"), Limit::Report)?)
}

/// Of a run that wrote a model to `out`; of a dry run nothing is left to tell.
pub(super) fn tell(report: Option<&Report>, out: Option<&Path>, common: &Common) -> Result<()> {
    let Some(report) = report else { return Ok(()) };
    if common.json {
        return print_json(report);
    }
    if let Some(comparison) = &report.comparison {
        print(&quality(comparison))?;
    }
    if let [before, after] = report.models.as_slice()
        && after.parameters < before.parameters
    {
        let of = |after: u64, before: u64| format!("{} ({} before)", count(after), count(before));
        print(&format!("  parameters    {}", of(after.parameters, before.parameters)))?;
        print(&format!("  MACs a call   {}", of(after.macs, before.macs)))?;
    }
    let calibrated = |stage: &Stage| stage.floor_seconds.map(|floor| (stage.seconds, floor));
    if let Some((seconds, floor)) = report.stages.iter().find_map(calibrated) {
        print(&format!(
            "  calibration   {seconds:.0} s, {:.1} times what its products take at this machine's rate",
            seconds / floor
        ))?;
    }
    let of_layers: Vec<f64> = report.layers.iter().map(|layer| layer.error).collect();
    let of_products: Vec<f64> = report.groups.iter().filter_map(|group| group.error).collect();
    let of_attentions: Vec<f64> = report.groups.iter().filter_map(|group| group.module_error).collect();
    let all = [("layer error  ", of_layers), ("product error", of_products), ("attentions'  ", of_attentions)];
    for (what, errors) in all {
        if !errors.is_empty() {
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            let worst = errors.iter().copied().fold(0.0, f64::max);
            print(&format!("  {what} {mean:.4} mean, {worst:.4} largest"))?;
        }
    }
    if let Some(skipping) = &report.skipping {
        report.notes.iter().try_for_each(|note| print(note))?;
        for way in &skipping.ways {
            let faster = way.speed_up.map_or(String::new(), |faster| format!(", {faster:.2} times faster"));
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
        Some(out) => print(&format!("model: {}\nreport: {}", shown(out), shown(&out.join("report.html")))),
        None => Ok(()),
    }
}
