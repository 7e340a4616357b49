//! Ways to do less, beside the whole run.

use secateur_models::{ModelFolder, Observer, Pipeline, Sampling};
use secateur_skip::{Way, compare};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is to be done and what is done.
#[derive(Default)]
struct Counts {
    begun: AtomicUsize,
    done: AtomicUsize,
}

impl Observer for Counts {
    fn begin(&self, _: &str, total: usize, _: &str) {
        self.begun.fetch_add(total, Ordering::Relaxed);
    }

    fn advance(&self, amount: usize) -> secateur_models::Result<()> {
        self.done.fetch_add(amount, Ordering::Relaxed);
        Ok(())
    }
}

/// The seed is that of the whole run, so that the same way makes the same pictures, in about the
/// same time.
#[test]
fn a_way_that_is_the_whole_run_is_equal_to_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/emoji-dit");
    let pipeline = Pipeline::open(ModelFolder::open(&folder, None).unwrap()).unwrap();
    let whole = Sampling { steps: 6, batch: 2, seed: 3, ..pipeline.folder().sampling() };
    let same = Sampling { seed: 4, ..whole.clone() };
    let fewer = Sampling { steps: 1, ..whole.clone() };
    let way = |name: &str, kept: f64, sampling: Sampling| Way { name: name.into(), kept, sampling };
    let ways = [way("the same", 1.0, same), way("one step", 0.25, fewer)];
    let prompts = ["1", "2", "3"].map(str::to_owned);
    let counts = Counts::default();
    let compared = compare(&pipeline, ("whole", &whole), &ways, &prompts, None, &counts).unwrap();
    assert_eq!((counts.begun.into_inner(), counts.done.into_inner()), (3 * 13, 3 * 13));
    let [same, fewer] = [&compared[0], &compared[1]];
    assert_eq!((same.report.name.as_str(), fewer.report.name.as_str()), ("the same", "one step"));
    assert_eq!((same.report.kept, fewer.report.kept), (1.0, 0.25));
    assert_eq!((same.report.psnr, same.report.latent_error), (100.0, 0.0));
    assert!((same.report.ssim - 1.0).abs() < 1e-9 && same.pictures.len() == 3);
    assert!(fewer.report.psnr < 50.0 && fewer.report.latent_error > 0.01, "{:?}", fewer.report);
    // Six steps in the time of one, by a clock that others share.
    let [same, fewer] = [same, fewer].map(|compared| compared.report.speed_up.unwrap());
    assert!(same > 0.25 && same < 4.0 && fewer > 1.5 * same, "{same}, {fewer}");
}
