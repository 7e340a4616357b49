//! `secateur compare`.

use super::prompts::held_out_prompts;
use super::request::{check_memory, command_line, names, no_score, open_model, skipping};
use crate::args::{Common, CompareArgs};
use crate::format::{print, print_json};
use crate::progress::Progress;
use anyhow::{Result, bail};
use secateur_eval::{Comparison, ModelSummary, Report, Samples};
use secateur_models::files::shown;
use secateur_models::{ModelFolder, Observer, Pipeline, Sampling, Structure, Subject};
use std::path::Path;

pub(crate) fn run(args: &CompareArgs, common: &Common) -> Result<()> {
    let open = |path: &Path| open_model(path, args.variant.as_deref());
    let (reference, candidate) = (open(&args.reference)?, open(&args.candidate)?);
    let sampling = args.sampling.sampling(&reference)?;
    check_comparable(&reference, &candidate, &sampling)?;
    let prompts = held_out_prompts(args.prompts.as_deref(), &reference, args.samples)?;
    check_memory(&reference, &sampling, sampling.batch.min(prompts.len()))?;
    let clip_path = args.score.path(&reference);
    let clip = args.score.open(&reference)?;
    reference.check_pictures()?;
    candidate.check_pictures()?;
    let mut notes = if clip.is_none() { vec![no_score(&reference).to_owned()] } else { Vec::new() };
    let progress = Progress::new(common.quiet);
    for line in reference.cuts(&prompts, &sampling)? {
        progress.warn(&line);
        notes.push(line);
    }
    let inputs = [
        Some(reference.path()),
        Some(candidate.path()),
        args.prompts.as_deref(),
        clip_path.as_deref(),
    ];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().collect();
    let skipping = |folder: &ModelFolder| skipping(&sampling, folder, args.skipping.adapt);
    let samplings = [skipping(&reference)?, skipping(&candidate)?];
    let output = args.out.as_ref().map(|out| common.output(out, &inputs)).transpose()?;
    let names = names(&[&args.reference, &args.candidate]);
    let mut samples = Vec::new();
    let mut models = Vec::new();
    for ((folder, name), sampling) in [reference, candidate].into_iter().zip(&names).zip(&samplings)
    {
        progress.begin("load", 0, "");
        let pipeline = Pipeline::open(folder)?;
        models.push(model_summary(&pipeline, name, sampling)?);
        pipeline.encode(&prompts, sampling, &progress)?;
        progress.begin(&format!("evaluate {name}"), prompts.len() * sampling.steps, "image steps");
        samples.push(Samples::generate(
            &pipeline,
            name,
            &prompts,
            sampling,
            clip.as_ref(),
            &progress,
        )?);
    }
    for (model, samples) in models.iter_mut().zip(&samples) {
        model.step_seconds = samples.step_seconds();
    }
    let (comparison, pictures) = samples[0].compare(&samples[1])?;
    let (stages, peak_bytes) = progress.finish();
    let report = Report {
        format_version: Report::FORMAT_VERSION,
        title: format!("{} beside {}", comparison.candidate, comparison.reference),
        command: command_line(),
        secateur_version: env!("CARGO_PKG_VERSION").into(),
        seed: sampling.seed,
        settings: serde_json::Map::new(),
        models,
        comparison: Some(comparison),
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
    if common.json {
        return print_json(&report);
    }
    if let Some(comparison) = &report.comparison {
        print(&quality(comparison))?;
    }
    match &args.out {
        Some(out) => print(&format!("report: {}", shown(&out.join("report.html")))),
        None => Ok(()),
    }
}

/// Fails where two models do not draw pictures of the same size from the same prompts.
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
        bail!("{one} and {other} cannot be compared: one is told {told}, the other {other_told}");
    }
    if reference.factor() != candidate.factor() {
        let (pixels, other_pixels) = (reference.factor(), candidate.factor());
        bail!(
            "{one} and {other} cannot be compared: a latent is {pixels} pixels wide in one, \
             {other_pixels} in the other"
        );
    }
    Ok(candidate.check(sampling)?)
}

/// What a model's denoiser is made of.
pub(super) fn model_summary(
    pipeline: &Pipeline,
    name: &str,
    sampling: &Sampling,
) -> Result<ModelSummary> {
    let (mut parameters, mut zeros) = (0, 0);
    let folder = pipeline.folder();
    let mut file_bytes = folder.checkpoint().bytes();
    for (name, tensor) in pipeline.parameters().iter().filter(|(name, _)| folder.is_parameter(name))
    {
        if let Some(info) = folder.checkpoint().tensor(name) {
            // What was removed since it was opened.
            let gone = info.elements().saturating_sub(tensor.elem_count());
            file_bytes -= (gone * info.bytes_each()) as u64;
        }
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        parameters += values.len() as u64;
        zeros += values.iter().filter(|value| **value == 0.0).count() as u64;
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

/// Multiply-accumulates of a call for one sample: on average, where some calls skip.
pub(super) fn macs_a_call(structure: &Structure, sampling: &Sampling) -> Result<u64> {
    match &sampling.reuse {
        Some(reuse) => Ok(reuse.macs(structure)? / reuse.computed.len().max(1) as u64),
        None => Ok(structure.macs()),
    }
}

/// The scores in a few lines.
pub(super) fn quality(comparison: &Comparison) -> String {
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
