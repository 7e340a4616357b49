//! Conversion of a single-file checkpoint to a model folder.

use super::folder::output;
use crate::error::Result;
use crate::recorder::Recorder;
use crate::settings::ConvertSettings;
use secateur_eval::Stage;
use secateur_models::{Conversion, Observer, SingleFile};
use serde::Serialize;
use std::path::PathBuf;

/// The result of a conversion.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Converted {
    /// The kind of model.
    pub kind: &'static str,
    /// The new folder.
    pub model: PathBuf,
    /// Number of tensors that were written.
    pub tensors: usize,
    /// Components whose weights come from the file.
    pub converted: Vec<&'static str>,
    /// Components whose weights come from the folder.
    pub copied: Vec<&'static str>,
    /// Time and memory of each stage.
    pub stages: Vec<Stage>,
    /// Peak memory of the process in bytes.
    pub peak_bytes: u64,
}

/// Converts a single-file checkpoint, as ComfyUI and A1111 read them, to a model folder.
///
/// # Errors
/// If the file is of no known kind or does not fit the folder, or if a file cannot be read or
/// written.
pub fn convert(settings: &ConvertSettings, observer: &dyn Observer) -> Result<Converted> {
    let file = SingleFile::open(&settings.file)?;
    let kind = file.kind();
    let conversion = Conversion::plan(file, &settings.like)?;
    let progress = Recorder::new(observer, &[], 0.0);
    conversion.warnings().for_each(|warning| progress.warn(&warning));
    let output =
        output(&settings.out, settings.force, &[&settings.file, &settings.like], observer)?;
    progress.begin("convert", conversion.tensors(), "tensors");
    conversion.write(&output.path(), &progress)?;
    let (stages, peak_bytes) = progress.stages();
    output.finish()?;
    Ok(Converted {
        kind,
        model: settings.out.clone(),
        tensors: conversion.tensors(),
        converted: conversion.converted().collect(),
        copied: conversion.copied().to_vec(),
        stages,
        peak_bytes,
    })
}
