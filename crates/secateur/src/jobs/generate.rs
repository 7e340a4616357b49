//! Drawing of pictures from prompts.

use super::folder::{BATCH, output, skipping};
use super::memory_needs::MemoryNeeds;
use super::prompts::held_out_prompts;
use crate::error::{Result, refuse};
use crate::profile::{Profile, Share};
use crate::recorder::Recorder;
use crate::settings::{GenerateSettings, Positive};
use secateur_eval::{Stage, split};
use secateur_models::{Observer, Pipeline, Subject};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The result of drawing pictures.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Generated {
    /// The model folder.
    pub model: PathBuf,
    /// The pictures, in the order of the prompts.
    pub images: Vec<Image>,
    /// The sampler's name.
    pub sampler: String,
    /// Denoising steps.
    pub steps: usize,
    /// The guidance scale.
    pub guidance: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// Type of numbers, and name, memory and libraries of the GPU that drew; None on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// Seconds from the first noise to the last file.
    pub seconds: f64,
    /// Number of pictures divided by `seconds`.
    pub images_per_second: f64,
    /// Time and memory of each stage.
    pub stages: Vec<Stage>,
    /// The most bytes that tensors took on the GPU; None on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_peak_bytes: Option<u64>,
    /// Peak memory of the process in bytes.
    pub peak_bytes: u64,
    /// Each operation's share of the time, if it was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations: Option<Vec<Share>>,
}

/// A picture.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Image {
    /// Its file.
    pub file: PathBuf,
    /// The prompt that it was drawn from.
    pub prompt: String,
}

/// Draws pictures with a model, and writes them to a folder.
///
/// # Errors
/// If the request does not fit the model, the model fails, or the folder cannot be written.
pub fn generate(settings: &GenerateSettings, observer: &dyn Observer) -> Result<Generated> {
    let folder = settings.device.at(settings.model.open(observer)?, observer)?;
    let sampling = settings.sampling.sampling(&folder, BATCH)?;
    let sampling = skipping(&sampling, &folder, settings.skipping.adapt)?;
    let samples = settings.samples.map(Positive::get);
    let prompts = match (settings.prompt.as_slice(), &settings.prompts, samples) {
        ([_, ..], ..) if folder.subject() == Subject::Nothing => {
            refuse!("this model takes no prompts: give `samples N`")
        }
        (prompts @ [_, ..], _, count) => {
            prompts.iter().take(count.unwrap_or(usize::MAX)).cloned().collect()
        }
        ([], Some(file), count) => {
            held_out_prompts(Some(file), &folder, count.unwrap_or(usize::MAX))?
        }
        ([], None, count) => held_out_prompts(None, &folder, count.unwrap_or(8))?,
    };
    if let Some(count) = samples.filter(|count| *count > prompts.len()) {
        observer.warn(&format!(
            "`samples` {count}, and there are {} prompts: one picture of each",
            prompts.len()
        ));
    }
    folder.check_pictures()?;
    let needs = MemoryNeeds::of(&folder, &sampling, sampling.batch.min(prompts.len()));
    needs.check()?;
    let progress = Recorder::new(observer, &[], 0.0);
    folder.cuts(&prompts, &sampling)?.iter().for_each(|line| progress.warn(line));
    let inputs: Vec<&Path> =
        std::iter::once(folder.path()).chain(settings.prompts.as_deref()).collect();
    let output = output(&settings.out, settings.force, &inputs, observer)?;
    let model = folder.path().to_owned();
    let pipeline = Pipeline::encoded(folder, &prompts, &sampling, &progress)
        .map_err(|error| needs.explain(error))?;
    let profile = settings.profile.then(Profile::start);

    progress.begin("generate", prompts.len() * sampling.steps, "image steps");
    let start = Instant::now();
    let mut images = Vec::new();
    for batch in sampling.batches(prompts.len()) {
        let pictures = pipeline
            .sample(&prompts, batch, &sampling, None, &progress)
            .and_then(|latents| pipeline.pictures(&latents))
            .map_err(|error| needs.explain(error))?;
        for picture in split(&pictures)? {
            let name = format!("{:04}.png", images.len());
            picture.save_png(output.path().join(&name))?;
            images.push(Image {
                file: settings.out.join(name),
                prompt: prompts[images.len()].clone(),
            });
        }
    }
    let time = start.elapsed();
    let (stages, peak_bytes) = progress.stages();
    output.finish()?;
    let operations = profile.map(|profile| profile.shares(time));
    let seconds = time.as_secs_f64();
    Ok(Generated {
        model,
        sampler: sampling.sampler.to_string(),
        steps: sampling.steps,
        guidance: sampling.guidance,
        seed: sampling.seed,
        gpu: pipeline.folder().placement().description(),
        gpu_peak_bytes: pipeline.folder().placement().memory().map(|gpu| gpu.peak),
        seconds,
        images_per_second: images.len() as f64 / seconds,
        images,
        stages,
        peak_bytes,
        operations,
    })
}
