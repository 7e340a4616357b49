//! What is printed of a report.

use super::compare::quality;
use crate::args::Common;
use crate::format::{count, print, print_json};
use crate::progress::say;
use anyhow::{Result, bail};
use secateur_eval::{Report, Stage};
use secateur_models::files::{Limit, read_json, shown};
use secateur_models::{ModelFolder, OutputFolder};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;

/// What became of a request for a new model.
pub(super) enum Done {
    /// It was written with this report.
    Model(Box<Report>),
    /// Nothing was done: this would be.
    Plan(Plan),
}

/// What would be done, for people and for machines.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Plan {
    #[serde(skip)]
    pub(super) text: String,
    pub(super) json: Value,
    /// What it takes.
    #[serde(skip)]
    pub(super) seconds: f64,
    /// What keeps it from being done.
    #[serde(skip)]
    pub(super) lacks: Option<String>,
}

impl Done {
    /// What would be done to the model of a folder.
    pub(super) fn plan(
        folder: &ModelFolder,
        text: String,
        plan: &impl Serialize,
        seconds: f64,
    ) -> Result<Self> {
        let lacks = folder.check_whole().err().map(|error| error.to_string());
        Ok(Self::Plan(Plan { text, json: serde_json::to_value(plan)?, seconds, lacks }))
    }
}

/// The report of a run that had come to its end before it was resumed.
pub(super) fn finished(output: &OutputFolder) -> Result<Done> {
    say(&format!("{} is complete: nothing is left to do", shown(output.target())));
    report_in(output.target()).map(|report| Done::Model(Box::new(report)))
}

/// The report in a folder.
pub(super) fn report_in(folder: &Path) -> Result<Report> {
    Ok(read_json(&folder.join("report.json"), Limit::Report)?)
}

/// What a run wrote to `out`, or would do.
pub(super) fn tell(done: &Done, out: Option<&Path>, common: &Common) -> Result<()> {
    let report = match done {
        Done::Plan(plan) => {
            match common.json {
                true => print_json(plan)?,
                false => print(&plan.text)?,
            }
            return plan
                .lacks
                .as_ref()
                .map_or(Ok(()), |lacks| bail!("{lacks}: this cannot be run"));
        }
        Done::Model(report) => report,
    };
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
        if let (Some(after), Some(before)) = (after.step_seconds, before.step_seconds) {
            let (millis, faster) = ([after, before].map(|seconds| 1e3 * seconds), before / after);
            let [after, before] = millis.map(|millis| format!("{millis:.1} ms"));
            print(&format!("  CPU a step    {after} ({before} before): {faster:.2} times less"))?;
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
        report.notes.iter().try_for_each(|note| print(note))?;
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
