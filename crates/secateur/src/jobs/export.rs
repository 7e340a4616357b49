//! Export of a smaller model at full size, for tools that cannot load smaller layers.

use super::folder::{links_left_out, output};
use crate::error::{Error, Result};
use crate::recorder::Recorder;
use crate::settings::ExportSettings;
use secateur_models::{Observer, OutputFolder};
use serde::Serialize;
use std::path::PathBuf;

/// The result of an export.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// The folder of the smaller model.
    pub model: PathBuf,
    /// The new folder.
    pub out: PathBuf,
    /// Number of modules that are at full size again.
    pub groups: usize,
    /// Number of tensors of these modules.
    pub tensors: usize,
}

/// Writes a model with zeros in place of the heads, dimensions and neurons that were removed from
/// it.
///
/// # Errors
/// If the model cannot be read, or the new folder cannot be written.
pub fn export(settings: &ExportSettings, observer: &dyn Observer) -> Result<Exported> {
    let folder = settings.model.open(observer)?;
    let progress = Recorder::new(observer, &[], 0.0);
    let copied = folder.copied_bytes()?;
    links_left_out(&folder).iter().for_each(|note| progress.note(note));
    let output = output(&settings.out, settings.force, &[folder.path()], observer)?;
    OutputFolder::check_space(output.target(), copied)?;
    progress.begin("densify", folder.checkpoint().tensors().count(), "tensors");
    let tensors = folder.densify(&output.path(), &progress)?;
    // A report of how it was made small is not one of this model.
    for report in ["report.html", "report.json"].map(|name| output.path().join(name)) {
        if report.exists() {
            std::fs::remove_file(&report).map_err(Error::file(&report))?;
        }
    }
    progress.stages();
    output.finish()?;
    let groups = folder.removals().iter().count();
    let (model, out) = (folder.path().to_owned(), settings.out.clone());
    Ok(Exported { model, out, groups, tensors })
}
