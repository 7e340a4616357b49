//! Comparison of the pictures of two models from the same noise.

use super::folder::{
    BATCH, names, no_score, of_gpu, open_model, output as output_folder, skipping,
};
use super::memory_needs::MemoryNeeds;
use super::prompts::held_out_prompts;
use crate::error::{Result, refuse};
use crate::recorder::Recorder;
use crate::settings::{CompareSettings, Positive};
use secateur_eval::{Comparison, ModelSummary, PicturePair, Report, Samples};
use secateur_models::files::shown;
use secateur_models::{ClipModel, ModelFolder, Observer, Pipeline, Sampling, Structure, Subject};
use secateur_nn::ops;
use std::path::{Path, PathBuf};

/// The default number of pictures of each model.
const SAMPLES: usize = 64;

/// Compares pictures of a candidate with those of a reference. The report is written if the
/// settings name a folder for it.
///
/// # Errors
/// If the models cannot be compared, or one of them fails.
pub fn compare(settings: &CompareSettings, observer: &dyn Observer) -> Result<Report> {
    let open = |path: &Path| open_model(path, settings.variant.as_deref(), observer);
    let reference = settings.device.at(open(&settings.reference)?, observer)?;
    let candidate = open(&settings.candidate)?.at(reference.placement().clone());
    let sampling = settings.sampling.sampling(&reference, BATCH)?;
    check_comparable(&reference, &candidate, &sampling)?;
    let prompts = held_out_prompts(
        settings.prompts.as_deref(),
        &reference,
        settings.samples.map_or(SAMPLES, Positive::get),
    )?;
    let images = sampling.batch.min(prompts.len());
    let clip_path = settings.score.path(&reference);
    let scorer = |path: &PathBuf| ClipModel::memory(path, images, prompts.len());
    let scorer = clip_path.as_ref().map(scorer).transpose()?.unwrap_or_default();
    let needs = |model| MemoryNeeds::of(model, &sampling, images).scored_by(scorer);
    let needs = [&reference, &candidate].map(needs);
    needs.iter().try_for_each(MemoryNeeds::check)?;
    let clip = settings.score.open(&reference)?;
    reference.check_pictures()?;
    candidate.check_pictures()?;
    let mut notes = if clip.is_none() { vec![no_score(&reference).to_owned()] } else { Vec::new() };
    let progress = Recorder::new(observer, &[], 0.0);
    for line in reference.cuts(&prompts, &sampling)? {
        progress.warn(&line);
        notes.push(line);
    }
    let inputs = [
        Some(reference.path()),
        Some(candidate.path()),
        settings.prompts.as_deref(),
        clip_path.as_deref(),
    ];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().collect();
    let skipping = |folder: &ModelFolder| skipping(&sampling, folder, settings.skipping.adapt);
    let samplings = [skipping(&reference)?, skipping(&candidate)?];
    let output = settings.out.as_ref();
    let output =
        output.map(|out| output_folder(out, settings.force, &inputs, observer)).transpose()?;
    let names = names(&[&settings.reference, &settings.candidate]);
    let mut evaluation = Evaluation::new(&prompts, clip.as_ref(), &progress);
    let placement = reference.placement().clone();
    let both = [reference, candidate].into_iter().zip(&names).zip(&samplings).zip(&needs);
    for (((folder, name), sampling), needs) in both {
        let pipeline = Pipeline::encoded(folder, &prompts, sampling, &progress)
            .map_err(|error| needs.explain(error))?;
        let added = evaluation.add(&pipeline, name, sampling);
        added.map_err(|error| needs.explain(error))?;
    }
    let (models, comparison, pictures) = evaluation.compare()?;
    let (stages, peak_bytes) = progress.stages();
    let report = Report {
        format_version: Report::FORMAT_VERSION,
        title: format!("{} beside {}", names[1], names[0]),
        command: settings.command.clone(),
        secateur_version: env!("CARGO_PKG_VERSION").into(),
        seed: sampling.seed,
        settings: of_gpu(&placement),
        models,
        comparison,
        layers: Vec::new(),
        groups: Vec::new(),
        skipping: None,
        stages,
        peak_bytes,
        notes,
    };
    if let Some(output) = output {
        report.write(&pictures, &output.path())?;
        output.finish()?;
    }
    Ok(report)
}

/// Fails if two models do not draw pictures of the same size from the same prompts.
fn check_comparable(
    reference: &ModelFolder,
    candidate: &ModelFolder,
    sampling: &Sampling,
) -> Result<()> {
    let told = |folder: &ModelFolder| match folder.subject() {
        Subject::Text => "texts",
        Subject::Label => "labels",
        Subject::Nothing => "nothing",
    };
    let (one, other) = (shown(reference.path()), shown(candidate.path()));
    if reference.subject() != candidate.subject() {
        let (told, other_told) = (told(reference), told(candidate));
        refuse!("{one} and {other} cannot be compared: one takes {told}, the other {other_told}");
    }
    if reference.factor() != candidate.factor() {
        let (pixels, other_pixels) = (reference.factor(), candidate.factor());
        refuse!(
            "{one} and {other} cannot be compared: a latent is {pixels} pixels wide in one, \
             {other_pixels} in the other"
        );
    }
    Ok(candidate.check(sampling)?)
}

/// The figures and pictures of two models for a report.
pub(super) struct Evaluation<'a> {
    prompts: &'a [String],
    clip: Option<&'a ClipModel>,
    progress: &'a dyn Observer,
    models: Vec<ModelSummary>,
    samples: Vec<Samples>,
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(
        prompts: &'a [String],
        clip: Option<&'a ClipModel>,
        progress: &'a dyn Observer,
    ) -> Self {
        Self { prompts, clip, progress, models: Vec::new(), samples: Vec::new() }
    }

    /// Adds a model: its figures, and its pictures if there are prompts.
    pub(super) fn add(
        &mut self,
        pipeline: &Pipeline,
        name: &str,
        sampling: &Sampling,
    ) -> Result<()> {
        let mut model = model_summary(pipeline, name, sampling)?;
        let Self { prompts, clip, progress, .. } = *self;
        if !prompts.is_empty() {
            let steps = prompts.len() * sampling.steps;
            progress.begin(&format!("evaluate {name}"), steps, "image steps");
            let samples = Samples::generate(pipeline, name, prompts, sampling, clip, progress)?;
            model.step_seconds = samples.step_seconds();
            self.samples.push(samples);
        }
        self.models.push(model);
        Ok(())
    }

    /// Returns the figures, and the comparison of the second model's pictures with the first's.
    pub(super) fn compare(
        self,
    ) -> Result<(Vec<ModelSummary>, Option<Comparison>, Vec<PicturePair>)> {
        let (comparison, pictures) = match self.samples.as_slice() {
            [reference, candidate] => {
                reference.compare(candidate).map(|(comparison, pairs)| (Some(comparison), pairs))?
            }
            _ => (None, Vec::new()),
        };
        Ok((self.models, comparison, pictures))
    }
}

/// Returns the figures of a model's denoiser.
pub(super) fn model_summary(
    pipeline: &Pipeline,
    name: &str,
    sampling: &Sampling,
) -> Result<ModelSummary> {
    let (mut parameters, mut zeros) = (0, 0);
    let folder = pipeline.folder();
    let mut file_bytes = folder.checkpoint().bytes();
    for (name, weight) in pipeline.parameters().iter().filter(|(name, _)| folder.is_parameter(name))
    {
        let tensor = weight.tensor()?;
        if let Some(info) = folder.checkpoint().tensor(name) {
            // What was removed since it was opened.
            let gone = info.elements().saturating_sub(tensor.elem_count());
            file_bytes -= (gone * info.bytes_each()) as u64;
        }
        parameters += tensor.elem_count() as u64;
        zeros += ops::zeros(&tensor)? as u64;
    }
    let macs = macs_a_call(&pipeline.structure(sampling), sampling)?;
    Ok(ModelSummary {
        name: name.to_owned(),
        parameters,
        zeros,
        macs,
        file_bytes,
        step_seconds: None,
    })
}

/// Returns the multiply-accumulates of a call for one sample, averaged over calls if some of them
/// skip.
pub(super) fn macs_a_call(structure: &Structure, sampling: &Sampling) -> Result<u64> {
    match &sampling.reuse {
        Some(reuse) => Ok(reuse.macs(structure)? / reuse.computed.len().max(1) as u64),
        None => Ok(structure.macs()),
    }
}
