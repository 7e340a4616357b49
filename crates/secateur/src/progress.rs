//! Progress, stages and interruption.

use crate::format::printable;
use crate::memory::{self, Watch};
use anyhow::Result;
use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};
use secateur_eval::Stage;
use secateur_models::{Error, Observer};
use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// A line on standard error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", printable(line));
}

/// A line on standard error for what may not be as wanted.
pub(crate) fn warn(text: &str) {
    say(&format!("warning: {text}"));
}

/// Takes over the signals that ask a process to end: the work ends at the next step, and work folders go, or stay for
/// `--resume`. A second signal ends the process at once.
pub(crate) fn heed_signals() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        use signal_hook::{consts, flag};
        let signals = [
            Some(consts::SIGINT),
            Some(consts::SIGTERM),
            #[cfg(unix)]
            (!is_ignored(consts::SIGHUP)).then_some(consts::SIGHUP),
        ];
        for signal in signals.into_iter().flatten() {
            // Where one cannot be taken over it ends the process as it always did.
            let _ =
                flag::register_conditional_shutdown(signal, i32::from(crate::INTERRUPTED), Arc::clone(&INTERRUPTED))
                    .and_then(|_| flag::register(signal, Arc::clone(&INTERRUPTED)));
        }
    });
}

/// Whether whoever started the process wants it to outlive the signal, as `nohup` does for SIGHUP.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // Where the system does not tell, the signal is left as it is.
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return true };
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (signal - 1) & 1 == 1
}

/// Whether the error is the user's wish to stop.
pub(crate) fn is_interruption(error: &anyhow::Error) -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
        && error.chain().any(|cause| cause.to_string() == Error::Interrupted.to_string())
}

/// Shows progress on standard error and keeps time and peak memory of each stage.
pub(crate) struct Progress {
    quiet: bool,
    terminal: bool,
    state: Mutex<State>,
    watch: Watch,
}

struct State {
    stages: Vec<Stage>,
    current: Option<Current>,
}

struct Current {
    name: String,
    unit: String,
    start: Instant,
    bar: Option<ProgressBar>,
    total: usize,
    done: usize,
    told: Instant,
    /// How the work stands.
    state: String,
}

/// Where there is no terminal, a line this often.
const INTERVAL: Duration = Duration::from_secs(10);

impl Progress {
    /// From here on signals end the work in order: see [`heed_signals`].
    pub(crate) fn new(quiet: bool) -> Self {
        heed_signals();
        let state = State { stages: Vec::new(), current: None };
        Self { quiet, terminal: std::io::stderr().is_terminal(), state: Mutex::new(state), watch: Watch::new() }
    }

    /// A line for people, unless they want quiet.
    pub(crate) fn note(&self, line: &str) {
        if !self.quiet {
            self.lock().bar_aside(|| say(line));
        }
    }

    /// Ends the current stage and returns all of them, with the peak of the process.
    pub(crate) fn finish(&self) -> (Vec<Stage>, u64) {
        let mut state = self.lock();
        state.end(self.quiet, self.watch.take());
        (state.stages.clone(), memory::peak())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Fails if the user asked to stop.
pub(crate) fn check() -> Result<(), Error> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

impl State {
    fn bar_aside(&self, print: impl FnOnce()) {
        match self.current.as_ref().and_then(|current| current.bar.as_ref()) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn end(&mut self, quiet: bool, peak: u64) {
        let Some(current) = self.current.take() else { return };
        let seconds = current.start.elapsed().as_secs_f64();
        if let Some(bar) = &current.bar {
            bar.finish_and_clear();
        }
        if !quiet {
            let units =
                if current.total > 0 { format!("{} {} in ", current.done, current.unit) } else { String::new() };
            say(&format!("{:<18} {units}{seconds:.1} s", current.name));
        }
        // Packages and batches of one kind are one stage.
        let kind = current.name.split(' ').next().unwrap_or_default().to_owned();
        match self.stages.iter_mut().find(|stage| stage.name == kind) {
            Some(stage) => {
                stage.seconds += seconds;
                stage.peak_bytes = stage.peak_bytes.max(peak);
            }
            None => self.stages.push(Stage { name: kind, seconds, floor_seconds: None, peak_bytes: peak }),
        }
    }
}

impl Observer for Progress {
    fn begin(&self, stage: &str, total: usize, unit: &str) {
        let mut state = self.lock();
        state.end(self.quiet, self.watch.take());
        let bar = (!self.quiet && self.terminal && total > 0).then(|| {
            let template = "{prefix:<18} {bar:30} {pos}/{len} {msg}  {rate}  {eta} left";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let rate = |state: &ProgressState, text: &mut dyn fmt::Write| {
                // A bar that cannot be drawn is no reason to stop.
                let _ = write!(text, "{:.1}/s", state.per_sec());
            };
            let style = style.with_key("rate", rate);
            let bar = ProgressBar::new(total as u64).with_style(style).with_prefix(stage.to_owned());
            bar.with_message(unit.to_owned())
        });
        let now = Instant::now();
        let (name, unit) = (stage.to_owned(), unit.to_owned());
        state.current = Some(Current { name, unit, start: now, bar, total, done: 0, told: now, state: String::new() });
    }

    fn advance(&self, amount: usize) -> Result<(), Error> {
        check()?;
        let mut state = self.lock();
        let Some(current) = &mut state.current else { return Ok(()) };
        current.done += amount;
        if let Some(bar) = &current.bar {
            bar.inc(amount as u64);
        } else if !self.quiet && current.told.elapsed() > INTERVAL && current.done < current.total {
            current.told = Instant::now();
            let (name, done, total, unit) = (&current.name, current.done, current.total, &current.unit);
            let state = if current.state.is_empty() { String::new() } else { format!(", {}", current.state) };
            // Nothing may be done yet.
            let rate = done as f64 / current.start.elapsed().as_secs_f64();
            let left = Duration::try_from_secs_f64((total - done) as f64 / rate);
            let left = left.map_or(String::new(), |left| format!(", {rate:.1}/s, {} left", HumanDuration(left)));
            say(&format!("{name:<18} {done}/{total} {unit}{state}{left}"));
        }
        Ok(())
    }

    fn tell(&self, told: &str) {
        let mut state = self.lock();
        let Some(current) = &mut state.current else { return };
        current.state = told.to_owned();
        if let Some(bar) = &current.bar {
            bar.set_message(format!("{}, {told}", current.unit));
        }
    }

    fn warn(&self, text: &str) {
        self.lock().bar_aside(|| warn(text));
    }
}
