//! What the change of one layer does to pictures.

use crate::calibration::Calibration;
use crate::error::{Error, Result};
use candle_core::Tensor;
use secateur_models::{Edits, Observer, Pipeline, Sampling};

/// Images that an influence is measured on.
const IMAGES: usize = 4;

/// How many pictures the influence of each layer or group is measured on, and how they are drawn.
#[must_use]
pub fn influence_pictures(calibration: &Calibration) -> (usize, Sampling) {
    (IMAGES.min(calibration.prompts.len()), influence_sampling(calibration))
}

/// A quarter of the steps.
pub(crate) fn influence_sampling(calibration: &Calibration) -> Sampling {
    let steps = calibration.sampling.steps;
    Sampling { steps: (steps / 4).max(steps.min(4)), ..calibration.sampling.clone() }
}

/// Measures what an edit does to pictures.
pub(super) struct Influence {
    prompts: Vec<String>,
    pub(super) sampling: Sampling,
    /// Latents of the model as it is, a tensor a batch.
    dense: Vec<Tensor>,
}

/// Heeds a wish to stop, and counts nothing.
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

    /// ||z' - z||^2 / ||z||^2 for the latents z, with the edit alone; the pipeline is then as it
    /// was.
    pub(super) fn of(
        &mut self,
        pipeline: &mut Pipeline,
        edits: Edits,
        observer: &dyn Observer,
    ) -> Result<f64> {
        let kept = edits
            .weights
            .keys()
            .filter_map(|name| Some((name.clone(), pipeline.parameters().get(name)?.clone())));
        let kept = Edits { weights: kept.collect(), removals: pipeline.removals().clone() };
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
