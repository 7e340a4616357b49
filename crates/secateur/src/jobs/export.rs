//! A model that other tools load of one that was made smaller.

use super::folder::{links_left_out, output};
use crate::error::{Error, Result};
use crate::recorder::Recorder;
use crate::settings::ExportSettings;
use secateur_models::{Observer, OutputFolder};
use serde::Serialize;
use std::path::PathBuf;

/// What was exported.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Exported {
    /// The model folder.
    pub model: PathBuf,
    /// The new folder.
    pub out: PathBuf,
    /// Modules that are at full size again.
    pub groups: usize,
    /// Their tensors.
    pub tensors: usize,
}

/// Puts zeros in place of the heads, dimensions and neurons that were removed of a model.
///
/// # Errors
/// If the model cannot be read, or the new folder not be written.
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
