//! A model folder of a checkpoint in one file.

use super::folder::output;
use crate::error::Result;
use crate::recorder::Recorder;
use crate::settings::ConvertSettings;
use secateur_eval::Stage;
use secateur_models::{Conversion, Observer, SingleFile};
use serde::Serialize;
use std::path::PathBuf;

/// What was converted.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Converted {
    /// The kind of model.
    pub kind: &'static str,
    /// The new folder.
    pub model: PathBuf,
    /// Tensors that were written.
    pub tensors: usize,
    /// Components whose weights come from the file.
    pub converted: Vec<&'static str>,
    /// Components whose weights come from the folder.
    pub copied: Vec<&'static str>,
    /// Time and memory.
    pub stages: Vec<Stage>,
    /// The most bytes that the process held.
    pub peak_bytes: u64,
}

/// Makes a model folder of a checkpoint in one file, as ComfyUI and A1111 read them.
///
/// # Errors
/// If the file is of no known kind or does not fit the folder, or something cannot be read or
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
