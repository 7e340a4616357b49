//! `secateur export`.

use super::request::{command_line, links_left_out};
use crate::args::{Common, ExportArgs};
use crate::format::{print, print_json};
use crate::progress::Progress;
use anyhow::Result;
use secateur_models::files::shown;
use secateur_models::{Observer, OutputFolder};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Exported<'a> {
    command: String,
    model: &'a Path,
    out: &'a Path,
    groups: usize,
    tensors: usize,
}

pub(crate) fn run(args: &ExportArgs, common: &Common) -> Result<()> {
    let folder = args.model.open()?;
    let progress = Progress::new(common.quiet);
    let copied = folder.copied_bytes()?;
    links_left_out(&folder).iter().for_each(|note| progress.note(note));
    let output = common.output(&args.out, &[folder.path()])?;
    OutputFolder::check_space(output.target(), copied)?;
    progress.begin("densify", folder.checkpoint().tensors().count(), "tensors");
    let tensors = folder.densify(&output.path(), &progress)?;
    // A report of how it was made small is not one of this model.
    for report in ["report.html", "report.json"].map(|name| output.path().join(name)) {
        if report.exists() {
            std::fs::remove_file(report)?;
        }
    }
    progress.finish();
    output.finish()?;
    let groups = folder.removals().iter().count();
    if common.json {
        let (command, model, out) = (command_line(), folder.path(), args.out.as_path());
        return print_json(&Exported { command, model, out, groups, tensors });
    }
    print(&format!(
        "{tensors} tensors of {groups} modules at full size again: {}",
        shown(&args.out)
    ))
}
