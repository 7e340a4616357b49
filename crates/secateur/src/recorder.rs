//! The stages of a job, as a report lists them.

use crate::estimate::Expected;
use crate::memory::{self, Watch};
use secateur_eval::Stage;
use secateur_models::{Observer, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Keeps time and peak memory of each stage, and tells an observer.
pub(crate) struct Recorder<'a> {
    observer: &'a dyn Observer,
    watch: Watch,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stages: Vec<Stage>,
    /// The first word of its name, and when it began.
    current: Option<(String, Instant)>,
}

impl<'a> Recorder<'a> {
    /// Of work whose stages are expected to take so long, and `later` seconds of other work after
    /// it. From here on the observer may stop it.
    pub(crate) fn new(observer: &'a dyn Observer, stages: &[Expected], later: f64) -> Self {
        let stages = stages.iter().map(|stage| (stage.name, stage.seconds));
        observer.start(&stages.chain([("", later)]).collect::<Vec<_>>());
        Self { observer, watch: Watch::new(), state: Mutex::default() }
    }

    /// Ends the last stage and returns all of them, with the peak of the process.
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

/// Work that is not shown, but may be stopped.
pub(crate) struct Unseen<'a>(pub(crate) &'a dyn Observer);

impl Observer for Unseen<'_> {
    fn advance(&self, _: usize) -> Result<()> {
        self.0.advance(0)
    }
}
