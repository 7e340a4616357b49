//! Runs a model and gathers the statistics of its activations.

use crate::calibration::calibrator::Calibrator;
use crate::calibration::settings::Calibration;
use crate::calibration::statistics::PackedStatistics;
use crate::calibration::sums::{Keeper, Reached, Sums};
use crate::error::{Error, Result};
use crate::plan::Package;
use secateur_models::{Observer, Pipeline};
use secateur_nn::LayerName;
use std::collections::BTreeMap;

/// Runs the whole denoising over all prompts and gathers the statistics of a package. It starts
/// from the partial sums saved in `sums`, if any. It saves its own there at the end of a step,
/// every one to five minutes, by what that costs, and when the observer interrupts after ten
/// seconds of work.
pub(crate) fn calibrate(
    pipeline: &Pipeline,
    package: &Package,
    calibration: &Calibration,
    step_weights: &[f64],
    sums: Option<Sums<'_>>,
    stage: &str,
    observer: &dyn Observer,
) -> Result<BTreeMap<LayerName, PackedStatistics>> {
    let Calibration { prompts, sampling, .. } = calibration;
    let mut calibrator = Calibrator::new(package, step_weights.to_vec(), calibration.token_stride);
    let Reached { images: done, mut halfway } = sums
        .as_ref()
        .map_or(Ok(Reached::default()), |sums| sums.load(&mut calibrator, observer))?;
    let batches = sampling.batches(prompts.len()).filter(|images| images.start >= done);
    let schedule = pipeline.folder().schedule(sampling.latent, sampling)?;
    let begun = halfway.as_ref().and_then(|halfway| schedule.calls().get(halfway.calls));
    let left = prompts.len() - done.min(prompts.len());
    let first = batches.clone().next().map_or(0, |images| images.len());
    let total = left * sampling.steps - begun.map_or(0, |call| call.step) * first;
    observer.begin(stage, total, "image steps");
    let model = pipeline.folder().checkpoint().bytes();
    let mut keeper = Keeper::new(sums, &calibrator, model);
    for images in batches {
        let probe = Some(&calibrator as _);
        pipeline.begin(prompts, images.clone(), sampling, probe, |mut denoising| {
            if let Some(halfway) = halfway.take() {
                denoising.go_on(halfway)?;
            }
            while denoising.step()? {
                let told = observer.advance(images.len());
                let reached = match denoising.next_calls().is_empty() {
                    true => Some(Reached { images: images.end, halfway: None }),
                    false => denoising
                        .halfway()
                        .map(|halfway| Reached { images: images.start, halfway: Some(halfway) }),
                };
                if let Some(reached) = reached {
                    keeper.step(&calibrator, &reached, told.is_err(), observer);
                }
                told?;
            }
            Ok::<_, Error>(())
        })?;
        calibrator.check()?;
    }
    calibrator.finish()
}
