//! The influence of one layer's change on pictures.

use crate::calibration::Calibration;
use crate::error::{Error, Result};
use candle_core::Tensor;
use secateur_models::{Edits, Observer, Pipeline, Sampling};

/// Number of images that an influence is measured on.
const IMAGES: usize = 4;

/// Returns how many pictures the influence of each layer or group is measured on, and their
/// sampling.
#[must_use]
pub fn influence_pictures(calibration: &Calibration) -> (usize, Sampling) {
    (IMAGES.min(calibration.prompts.len()), influence_sampling(calibration))
}

/// Returns the sampling of the calibration with a quarter of the steps.
pub(crate) fn influence_sampling(calibration: &Calibration) -> Sampling {
    let steps = calibration.sampling.steps;
    Sampling { steps: (steps / 4).max(steps.min(4)), ..calibration.sampling.clone() }
}

/// Measures the effect of an edit on pictures.
pub(super) struct Influence {
    prompts: Vec<String>,
    pub(super) sampling: Sampling,
    /// Latents of the unchanged model, one tensor per batch.
    dense: Vec<Tensor>,
}

/// An observer that only passes on interruptions, and ignores progress.
struct Uncounted<'a>(&'a dyn Observer);

impl Observer for Uncounted<'_> {
    fn advance(&self, _: usize) -> secateur_models::Result<()> {
        self.0.advance(0)
    }
}

impl Influence {
    pub(super) fn new(
        pipeline: &Pipeline,
        calibration: &Calibration,
        observer: &dyn Observer,
    ) -> Result<Self> {
        let (images, sampling) = influence_pictures(calibration);
        let mut influence =
            Self { prompts: calibration.prompts[..images].to_vec(), sampling, dense: Vec::new() };
        influence.dense = influence.draw(pipeline, observer)?;
        Ok(influence)
    }

    fn draw(&self, pipeline: &Pipeline, observer: &dyn Observer) -> Result<Vec<Tensor>> {
        let draw = |images| {
            pipeline.sample(&self.prompts, images, &self.sampling, None, &Uncounted(observer))
        };
        Ok(self
            .sampling
            .batches(self.prompts.len())
            .map(draw)
            .collect::<secateur_models::Result<_>>()?)
    }

    /// Returns ||z' - z||^2 / ||z||^2, where z are the latents of the unchanged model and z' those
    /// with only this edit. The pipeline is unchanged afterwards.
    pub(super) fn of(
        &mut self,
        pipeline: &mut Pipeline,
        edits: Edits,
        observer: &dyn Observer,
    ) -> Result<f64> {
        let mut kept = Edits { removals: pipeline.removals().clone(), ..Edits::default() };
        for name in edits.weights.keys() {
            if let Some(weight) = pipeline.weight(name)? {
                kept.weights.insert(name.clone(), weight);
            }
        }
        pipeline.apply(&edits)?;
        let changed = self.draw(pipeline, observer);
        pipeline.apply(&kept)?;
        observer.advance(1)?;
        let square = |tensor: &Tensor| {
            Ok::<f64, Error>(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?))
        };
        let (mut difference, mut total) = (0.0, 0.0);
        for (changed, dense) in changed?.iter().zip(&self.dense) {
            difference += square(&(changed - dense)?)?;
            total += square(dense)?;
        }
        Ok(difference / total.max(f64::MIN_POSITIVE))
    }
}
