//! Lists of prompts.

use crate::error::{Error, Result, refuse};
use crate::settings::{Positive, PromptSettings};
use secateur_models::files::shown;
use secateur_models::{ModelFolder, Subject, read_prompts};
use std::collections::HashSet;
use std::path::Path;

/// Returns the prompts to learn from, the prompts of the report, and notes. The former are
/// `samples` prompts of the model's own list if no number is given. No text is in both lists.
/// Labels can be in both, with different noise.
pub(super) fn prompt_lists(
    args: &PromptSettings,
    folder: &ModelFolder,
    samples: usize,
) -> Result<(Vec<String>, Vec<String>, Vec<String>)> {
    match folder.subject() {
        Subject::Nothing if args.prompts.is_some() || args.report_prompts.is_some() => {
            refuse!(
                "{} takes no prompts: give `samples N`, and `report-samples N`",
                shown(folder.path())
            )
        }
        Subject::Nothing => Ok((
            numbered(args.samples.map_or(samples, Positive::get)),
            numbered(args.report_samples()),
            Vec::new(),
        )),
        Subject::Text | Subject::Label => lists(args, folder, samples),
    }
}

/// Returns the prompts to calibrate with, the prompts of the report, and notes.
fn lists(
    args: &PromptSettings,
    folder: &ModelFolder,
    samples: usize,
) -> Result<(Vec<String>, Vec<String>, Vec<String>)> {
    let mut notes = Vec::new();
    let (mut calibration, from_file) = match &args.prompts {
        Some(file) => (read_prompts(file)?, true),
        None => match folder.prompts(|prompts| &prompts.calibration)? {
            Some(own) => (own, false),
            None => refuse!("{} comes with no prompts: give `prompts FILE`", shown(folder.path())),
        },
    };
    let mut report = match &args.report_prompts {
        _ if args.report_samples() == 0 => Vec::new(),
        Some(file) => read_prompts(file)?,
        None => match folder.prompts(|prompts| &prompts.held_out)? {
            Some(held_out) => held_out,
            None => {
                let kept = (calibration.len() / 10)
                    .clamp(1, args.report_samples())
                    .min(calibration.len() - 1);
                notes.push(format!(
                    "{kept} of the {} prompts were kept back for this report",
                    calibration.len()
                ));
                calibration.split_off(calibration.len() - kept)
            }
        },
    };
    match (args.samples.map(Positive::get), from_file) {
        (Some(count), _) if count > calibration.len() => {
            refuse!("`samples` {count}, and there are {} calibration prompts", calibration.len());
        }
        (Some(count), _) => calibration.truncate(count),
        (None, false) => calibration.truncate(samples),
        (None, true) => {}
    }
    if folder.subject() == Subject::Text {
        notes.extend(leave_out(&mut report, &calibration));
    }
    if report.is_empty() && args.report_samples() > 0 {
        refuse!(
            "no prompt is left for the report: give `report-prompts FILE`, or `report-samples 0` \
             for none"
        );
    }
    report.truncate(args.report_samples());
    folder.check_prompts(&calibration)?;
    folder.check_prompts(&report)?;
    Ok((calibration, report, notes))
}

/// Returns the prompts of a report on a model that learned from the prompts `learned`, and notes.
pub(super) fn report_list(
    args: &PromptSettings,
    folder: &ModelFolder,
    learned: &[String],
) -> Result<(Vec<String>, Vec<String>)> {
    if folder.subject() == Subject::Nothing || args.report_samples() == 0 {
        return Ok((numbered(args.report_samples()), Vec::new()));
    }
    let mut report = match &args.report_prompts {
        Some(file) => read_prompts(file)?,
        None => match folder.prompts(|prompts| &prompts.held_out)? {
            Some(held_out) => held_out,
            None => refuse!(
                "{} comes with no held-out prompts: give `report-prompts FILE`, \
                 or `report-samples 0` for no comparison",
                shown(folder.path())
            ),
        },
    };
    let notes = match folder.subject() {
        Subject::Text => leave_out(&mut report, learned),
        _ => None,
    };
    if report.is_empty() {
        refuse!(
            "no prompt is left for the report that nothing is learned from: give `report-prompts \
             FILE`, or `report-samples 0` for none"
        );
    }
    report.truncate(args.report_samples());
    folder.check_prompts(&report)?;
    Ok((report, notes.into_iter().collect()))
}

/// Removes the prompts from a report that are in `learned`, and returns a note if there were any.
fn leave_out(report: &mut Vec<String>, learned: &[String]) -> Option<String> {
    let seen: HashSet<&String> = learned.iter().collect();
    let before = report.len();
    report.retain(|prompt| !seen.contains(prompt));
    let left_out = before - report.len();
    (left_out > 0)
        .then(|| format!("{left_out} report prompts are calibration prompts and were left out"))
}

/// Returns at most `count` prompts of a file, or by default of the model's held-out list. For a
/// model without prompts, returns as many numbers.
pub(crate) fn held_out_prompts(
    file: Option<&Path>,
    folder: &ModelFolder,
    count: usize,
) -> Result<Vec<String>> {
    let mut prompts = match (file, folder.subject()) {
        (None, Subject::Nothing) => numbered(count),
        (Some(_), Subject::Nothing) => {
            refuse!("{} takes no prompts: give `samples N`", shown(folder.path()))
        }
        (Some(file), _) => read_prompts(file)?,
        (None, _) => folder.prompts(|prompts| &prompts.held_out)?.ok_or_else(|| {
            Error::Request(format!(
                "{} comes with no prompts: give `prompts FILE`",
                shown(folder.path())
            ))
        })?,
    };
    prompts.truncate(count);
    folder.check_prompts(&prompts)?;
    Ok(prompts)
}

/// Returns placeholders for the prompts of a model without prompts.
pub(crate) fn numbered(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("sample {number}")).collect()
}
