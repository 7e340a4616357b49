//! The stages of a job, as a report lists them.

use crate::estimate::Expected;
use crate::memory::{self, Watch};
use secateur_eval::Stage;
use secateur_models::{Observer, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Records time and peak memory of each stage, and passes progress on to an observer.
pub(crate) struct Recorder<'a> {
    observer: &'a dyn Observer,
    watch: Watch,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stages: Vec<Stage>,
    /// The first word of the current stage's name, and when it began.
    current: Option<(String, Instant)>,
}

impl<'a> Recorder<'a> {
    /// Starts recording work with these expected stages, followed by `later` seconds of other work.
    /// From here on the observer can stop the work.
    pub(crate) fn new(observer: &'a dyn Observer, stages: &[Expected], later: f64) -> Self {
        let stages = stages.iter().map(|stage| (stage.name, stage.seconds));
        observer.start(&stages.chain([("", later)]).collect::<Vec<_>>());
        Self { observer, watch: Watch::new(), state: Mutex::default() }
    }

    /// Ends the last stage, and returns all stages and the peak memory of the process in bytes.
    pub(crate) fn stages(&self) -> (Vec<Stage>, u64) {
        let mut state = self.lock();
        state.end(self.watch.take());
        self.observer.finish();
        (state.stages.clone(), memory::peak())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, peak: u64) {
        let Some((name, start)) = self.current.take() else { return };
        let seconds = start.elapsed().as_secs_f64();
        // Packages and batches of one kind are one stage.
        match self.stages.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => {
                stage.seconds += seconds;
                stage.peak_bytes = stage.peak_bytes.max(peak);
            }
            None => {
                self.stages.push(Stage { name, seconds, floor_seconds: None, peak_bytes: peak });
            }
        }
    }
}

impl Observer for Recorder<'_> {
    fn begin(&self, stage: &str, total: usize, unit: &str) {
        let mut state = self.lock();
        state.end(self.watch.take());
        let kind = stage.split(' ').next().unwrap_or_default().to_owned();
        state.current = Some((kind, Instant::now()));
        self.observer.begin(stage, total, unit);
    }

    fn advance(&self, amount: usize) -> Result<()> {
        self.observer.advance(amount)
    }

    fn tell(&self, state: &str) {
        self.observer.tell(state);
    }

    fn note(&self, line: &str) {
        self.observer.note(line);
    }

    fn say(&self, line: &str) {
        self.observer.say(line);
    }

    fn warn(&self, text: &str) {
        self.observer.warn(text);
    }
}

/// An observer that only passes on interruptions, for work that is not shown.
pub(crate) struct Unseen<'a>(pub(crate) &'a dyn Observer);

impl Observer for Unseen<'_> {
    fn advance(&self, _: usize) -> Result<()> {
        self.0.advance(0)
    }
}
