//! Pictures of a model for a list of prompts, and their comparison with those of another.

use crate::error::Result;
use crate::html::PicturePair;
use crate::metrics::{psnr_capped, relative_error, ssim};
use crate::picture::Picture;
use crate::report::{Comparison, PromptRow, TextImage};
use crate::spread::Spread;
use crate::summary::Summary;
use candle_core::Tensor;
use secateur_models::{ClipModel, Observer, Pipeline, Sampling};
use std::cell::{Cell, RefCell};
use std::time::Instant;

/// Pictures of a model for a list of prompts. Two models with the same prompts and sampling start
/// from the same noise.
pub struct Samples {
    model: String,
    prompts: Vec<String>,
    sampling: Sampling,
    /// Final latents of each picture, flattened.
    latents: Vec<Vec<f32>>,
    pictures: Vec<Picture>,
    scores: Option<Scores>,
    /// Seconds of each step of a full batch, per picture: see [`Samples::step_seconds`].
    step_seconds: Vec<f64>,
}

/// Text-image scores of pictures.
struct Scores {
    /// Name of the scoring model.
    model: String,
    /// Cosine similarity of every text (row) with every picture (column).
    cosines: Vec<Vec<f32>>,
    /// For each picture, the index of its own text.
    own: Vec<usize>,
}

/// Returns the processor time of this process so far, over all threads, in seconds.
#[cfg(unix)]
fn processor_seconds() -> Option<f64> {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64)
}

#[cfg(not(unix))]
fn processor_seconds() -> Option<f64> {
    None
}

/// Passes progress on to an observer, and times the steps of full batches.
struct Timed<'a> {
    observer: &'a dyn Observer,
    /// Returns the seconds so far.
    clock: &'a dyn Fn() -> Option<f64>,
    /// Number of images of a full batch.
    full: usize,
    last: Cell<Option<f64>>,
    steps: RefCell<Vec<f64>>,
}

impl Observer for Timed<'_> {
    fn advance(&self, amount: usize) -> secateur_models::Result<()> {
        let now = (self.clock)();
        if let (Some(now), Some(last), true) = (now, self.last.replace(now), amount == self.full) {
            self.steps.borrow_mut().push((now - last) / amount as f64);
        }
        self.observer.advance(amount)
    }

    fn tell(&self, state: &str) {
        self.observer.tell(state);
    }

    fn warn(&self, text: &str) {
        self.observer.warn(text);
    }
}

impl Samples {
    /// Generates one picture per prompt, and scores the pictures if there is a `clip`. The observer
    /// advances by the samples of a batch at every step: by prompts x steps in all.
    ///
    /// # Errors
    /// If the model fails or makes values that are not finite, or the observer interrupts.
    pub fn generate(
        pipeline: &Pipeline,
        model: &str,
        prompts: &[String],
        sampling: &Sampling,
        clip: Option<&ClipModel>,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let full = sampling.batch.min(prompts.len());
        let start = Instant::now();
        // A GPU's time is not the process's.
        let clock = || match pipeline.folder().placement().is_on_gpu() {
            true => Some(start.elapsed().as_secs_f64()),
            false => processor_seconds(),
        };
        let (clock, last, steps) = (&clock, Cell::new(clock()), RefCell::default());
        let timed = Timed { observer, clock, full, last, steps };
        let draw = |images| Ok(pipeline.sample(prompts, images, sampling, None, &timed)?);
        let latents = sampling.batches(prompts.len()).map(draw).collect::<Result<Vec<_>>>()?;
        let samples = Self::of(pipeline, model, prompts, sampling, &latents, clip)?;
        Ok(Self { step_seconds: timed.steps.into_inner(), ..samples })
    }

    /// Decodes and scores final latents that were drawn before, batch by batch.
    ///
    /// # Errors
    /// If the model makes values that are not finite.
    pub fn of(
        pipeline: &Pipeline,
        model: &str,
        prompts: &[String],
        sampling: &Sampling,
        latents: &[Tensor],
        clip: Option<&ClipModel>,
    ) -> Result<Self> {
        let mut samples = Self {
            model: model.to_owned(),
            prompts: prompts.to_vec(),
            sampling: sampling.clone(),
            latents: Vec::new(),
            pictures: Vec::new(),
            scores: None,
            step_seconds: Vec::new(),
        };
        let captions = match clip {
            Some(_) => {
                pipeline.folder().captions(prompts)?.filter(|captions| !captions.own.is_empty())
            }
            None => None,
        };
        let clip = clip.zip(captions);
        let mut embeddings = Vec::new();
        for latents in latents {
            let pictures = pipeline.pictures(latents)?;
            if let Some((clip, _)) = &clip {
                embeddings.push(clip.embed_pictures(&pictures)?);
            }
            samples.latents.extend(latents.flatten_from(1)?.to_vec2::<f32>()?);
            samples.pictures.extend(split(&pictures)?);
        }
        if let Some((clip, captions)) = clip {
            let pictures = Tensor::cat(&embeddings, 0)?;
            let cosines =
                clip.embed_texts(&captions.choices)?.matmul(&pictures.t()?)?.to_vec2::<f32>()?;
            samples.scores =
                Some(Scores { model: clip.name().to_owned(), cosines, own: captions.own });
        }
        Ok(samples)
    }

    /// Returns the median time of a denoising step for one picture, in seconds, in full batches: on
    /// the CPU processor time over all threads, on a GPU wall-clock time. `None` if the system does
    /// not report it, or the latents were drawn before.
    #[must_use]
    pub fn step_seconds(&self) -> Option<f64> {
        (!self.step_seconds.is_empty())
            .then(|| Spread::of(self.step_seconds.iter().copied()).median)
    }

    /// Returns the pictures, in the order of the prompts.
    #[must_use]
    pub fn pictures(&self) -> &[Picture] {
        &self.pictures
    }

    /// Compares `candidate` with `self`, the reference, picture by picture.
    ///
    /// # Errors
    /// If there are no pictures, or their sizes differ.
    pub fn compare(&self, candidate: &Self) -> Result<(Comparison, Vec<PicturePair>)> {
        let of = |samples: &Self| samples.scores.as_ref().map(Scores::of_pictures);
        let (ours, theirs) = (of(self), of(candidate));
        let mut rows = Vec::new();
        let mut pairs = Vec::new();
        for (i, prompt) in self.prompts.iter().enumerate().take(candidate.prompts.len()) {
            let (reference, changed) = (&self.pictures[i], &candidate.pictures[i]);
            rows.push(PromptRow {
                prompt: prompt.clone(),
                psnr: psnr_capped(reference, changed)?,
                ssim: ssim(reference, changed)?,
                latent_error: relative_error(&candidate.latents[i], &self.latents[i])?,
                score_reference: ours.as_ref().map(|(scores, _)| scores[i]),
                score_candidate: theirs.as_ref().map(|(scores, _)| scores[i]),
            });
            let (reference, candidate) = (reference.clone(), changed.clone());
            pairs.push(PicturePair { prompt: prompt.clone(), reference, candidate });
        }
        let summary = |value: &dyn Fn(&PromptRow) -> f64| {
            Summary::of(&rows.iter().map(value).collect::<Vec<_>>())
        };
        let text_image = match (&ours, &theirs, &self.scores) {
            (Some((reference, top1_reference)), Some((changed, top1_candidate)), Some(scores)) => {
                Some(TextImage {
                    model: scores.model.clone(),
                    score_reference: Summary::of(reference)?,
                    score_candidate: Summary::of(changed)?,
                    top1_reference: *top1_reference,
                    top1_candidate: *top1_candidate,
                    choices: scores.cosines.len(),
                })
            }
            _ => None,
        };
        let comparison = Comparison {
            reference: self.model.clone(),
            candidate: candidate.model.clone(),
            steps: self.sampling.steps,
            guidance: self.sampling.guidance,
            psnr: summary(&|row| row.psnr)?,
            ssim: summary(&|row| row.ssim)?,
            latent_error: summary(&|row| row.latent_error)?,
            text_image,
            prompts: rows,
        };
        Ok((comparison, pairs))
    }
}

impl Scores {
    /// Returns the cosine similarity of each picture with its own text, and the share of pictures
    /// whose own text has the highest score.
    fn of_pictures(&self) -> (Vec<f64>, f64) {
        let own: Vec<f64> = self
            .own
            .iter()
            .enumerate()
            .map(|(i, &text)| f64::from(self.cosines[text][i]))
            .collect();
        // A text that stands in the list twice fits equally well: a tie is no mistake.
        let best = |picture: usize| {
            self.cosines.iter().map(|row| row[picture]).fold(f32::NEG_INFINITY, f32::max)
        };
        let right = own
            .iter()
            .enumerate()
            .filter(|&(picture, &cosine)| cosine >= f64::from(best(picture)))
            .count();
        let share = right as f64 / own.len().max(1) as f64;
        (own, share)
    }
}

/// Splits a tensor (samples x height x width x 3, in [0, 1]) into pictures.
///
/// # Errors
/// If the tensor has another shape, or holds values that are not finite.
pub fn split(pictures: &Tensor) -> Result<Vec<Picture>> {
    let (samples, height, width, _) = pictures.dims4()?;
    let picture = |i| Picture::new(width, height, pictures.get(i)?.flatten_all()?.to_vec1()?);
    (0..samples).map(picture).collect()
}
