//! Comparison of ways to sample with the whole run, on pictures that were not used for learning.

use crate::baselines::Way;
use crate::error::Result;
use secateur_eval::{Comparison, PicturePair, Samples, Spread, WayReport};
use secateur_models::{ClipModel, Denoising, Observer, Pipeline, Sampling};
use std::time::Instant;

/// The result for one way.
pub struct Compared {
    /// The summary.
    pub report: WayReport,
    /// The comparison of its pictures with those of the whole run.
    pub comparison: Comparison,
    /// Pairs of a picture of the whole run and its own.
    pub pictures: Vec<PicturePair>,
}

/// Draws one picture per prompt by the whole run `whole`, which the report calls `name`, and by
/// each way, from the same noise. The ways take turns batch by batch, so that a change of the
/// machine's speed affects all of them. The timing excludes the text encoders and the autoencoder.
///
/// # Errors
/// If the model fails, or the observer interrupts.
pub fn compare(
    pipeline: &Pipeline,
    (name, whole): (&str, &Sampling),
    ways: &[Way],
    prompts: &[String],
    clip: Option<&ClipModel>,
    observer: &dyn Observer,
) -> Result<Vec<Compared>> {
    let own = |way: &Way| (way.name.clone(), Sampling { seed: whole.seed, ..way.sampling.clone() });
    let all: Vec<(String, Sampling)> =
        [(name.to_owned(), whole.clone())].into_iter().chain(ways.iter().map(own)).collect();
    let steps: usize = all.iter().map(|(_, sampling)| sampling.steps).sum();
    observer.begin("evaluate", prompts.len() * steps, "image steps");
    let (mut latents, mut seconds) = (vec![Vec::new(); all.len()], vec![Vec::new(); all.len()]);
    for images in whole.batches(prompts.len()) {
        let conditioning =
            pipeline.guided_conditioning(&prompts[images.clone()], whole.latent, whole)?;
        let noise = pipeline.noise(images.clone(), whole)?;
        for (index, (_, sampling)) in all.iter().enumerate() {
            let start = Instant::now();
            let mut run =
                Denoising::new(pipeline, &noise, &conditioning, images.clone(), sampling, None)?;
            while run.step()? {
                observer.advance(images.len())?;
            }
            latents[index].push(run.latents().clone());
            seconds[index].push(start.elapsed().as_secs_f64());
        }
    }
    let samples = |index: usize| {
        let (name, sampling) = &all[index];
        Samples::of(pipeline, name, prompts, sampling, &latents[index], clip)
    };
    let reference = samples(0)?;
    let compared = |(index, way): (usize, &Way)| {
        let (comparison, pictures) = reference.compare(&samples(index + 1)?)?;
        let ratios = seconds[0].iter().zip(&seconds[index + 1]).map(|(whole, way)| whole / way);
        let report = WayReport::new(&comparison, way.kept, Some(Spread::of(ratios).median));
        Ok(Compared { report, comparison, pictures })
    };
    ways.iter().enumerate().map(compared).collect()
}
