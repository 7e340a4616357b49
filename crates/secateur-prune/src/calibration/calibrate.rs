//! Runs a model and gathers the statistics of its activations.

use crate::calibration::calibrator::Calibrator;
use crate::calibration::settings::Calibration;
use crate::calibration::statistics::InputStatistics;
use crate::calibration::sums::{Keeper, Sums};
use crate::error::Result;
use crate::plan::Package;
use secateur_models::{Observer, Pipeline};
use secateur_nn::LayerName;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Runs the whole denoising over all prompts and gathers the statistics of a package. It starts
/// from the partial sums saved in `sums`, if any. It saves its own there at the end of a batch,
/// about once a minute, and when the observer interrupts.
pub(crate) fn calibrate(
    pipeline: &Pipeline,
    package: &Package,
    calibration: &Calibration,
    step_weights: &[f64],
    sums: Option<Sums<'_>>,
    stage: &str,
    observer: &dyn Observer,
) -> Result<BTreeMap<LayerName, InputStatistics>> {
    let Calibration { prompts, sampling, .. } = calibration;
    let mut calibrator = Calibrator::new(package, step_weights.to_vec(), calibration.token_stride);
    let done = sums.as_ref().map_or(Ok(0), |sums| sums.load(&mut calibrator, observer))?;
    observer.begin(
        stage,
        (prompts.len() - done.min(prompts.len())) * sampling.steps,
        "image steps",
    );
    let mut keeper = Keeper::new(sums);
    let mut time = None;
    for images in sampling.batches(prompts.len()).filter(|images| images.start >= done) {
        let (start, end) = (Instant::now(), images.end);
        let batch =
            Batch { observer, end: time.map(|time| start + time), stopped: Cell::new(false) };
        pipeline.sample(prompts, images, sampling, Some(&calibrator), &batch)?;
        calibrator.check()?;
        keeper.batch(&mut calibrator, end, batch.stopped.get(), observer);
        // Whoever interrupted does so again.
        observer.advance(0)?;
        time = Some(start.elapsed());
    }
    calibrator.finish()
}

/// The longest time that an interruption waits for the end of a batch.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lets a batch that is nearly done finish before an interruption, as sums are saved between
/// batches.
struct Batch<'a> {
    observer: &'a dyn Observer,
    /// When the batch should end, estimated from the duration of the one before.
    end: Option<Instant>,
    stopped: Cell<bool>,
}

impl Observer for Batch<'_> {
    fn advance(&self, amount: usize) -> secateur_models::Result<()> {
        let told = self.observer.advance(amount);
        let now = Instant::now();
        let soon = self.end.is_some_and(|end| now < end + PATIENCE && end < now + PATIENCE);
        if told.is_err() && soon {
            self.stopped.set(true);
            return Ok(());
        }
        told
    }

    fn tell(&self, state: &str) {
        self.observer.tell(state);
    }

    fn warn(&self, text: &str) {
        self.observer.warn(text);
    }
}

#[cfg(test)]
mod tests {
    use super::{Batch, Cell, Duration, Instant, Observer};
    use secateur_models::Error;
    use std::sync::Mutex;

    /// Records the messages that it receives, and interrupts.
    #[derive(Default)]
    struct Ear(Mutex<Vec<String>>);

    impl Observer for Ear {
        fn advance(&self, _: usize) -> secateur_models::Result<()> {
            Err(Error::Interrupted)
        }

        fn tell(&self, state: &str) {
            self.0.lock().unwrap().push(format!("told {state}"));
        }

        fn warn(&self, text: &str) {
            self.0.lock().unwrap().push(format!("warned {text}"));
        }
    }

    #[test]
    fn an_interruption_waits_for_the_end_of_a_batch_that_is_near() {
        let ear = Ear::default();
        let batch = |seconds: Option<u64>| {
            let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
            Batch { observer: &ear, end, stopped: Cell::new(false) }
        };
        for (seconds, waits) in [(None, false), (Some(0), true), (Some(8), true), (Some(60), false)]
        {
            let batch = batch(seconds);
            assert_eq!(batch.advance(1).is_ok(), waits, "{seconds:?}");
            assert_eq!(batch.stopped.get(), waits, "{seconds:?}");
        }
        let overdue = Instant::now().checked_sub(Duration::from_secs(11));
        assert!(overdue.is_none() || Batch { end: overdue, ..batch(None) }.advance(1).is_err());
        batch(None).tell("half");
        batch(None).warn("little memory");
        assert_eq!(*ear.0.lock().unwrap(), ["told half", "warned little memory"]);
    }
}
