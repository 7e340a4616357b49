//! Progress and interruption.

use crate::cli::print::{say, warn};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use secateur::Observer;
use secateur_models::Error;
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

/// The exit code after an interruption, as of a shell: 128 plus the number of the signal.
pub(crate) const INTERRUPTED_CODE: u8 = 130;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Handles the signals that ask a process to end. The first one ends the work at its next step; its
/// work folders are removed, or kept for `--resume`. A second one ends the process at once.
fn heed_signals() {
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
            let _ = flag::register_conditional_shutdown(
                signal,
                i32::from(INTERRUPTED_CODE),
                Arc::clone(&INTERRUPTED),
            )
            .and_then(|_| flag::register(signal, Arc::clone(&INTERRUPTED)));
        }
    });
}

/// Returns whether the parent process made this one ignore the signal, as `nohup` does for SIGHUP.
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // Where the system does not tell, the signal is left as it is.
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return true };
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (signal - 1) & 1 == 1
}

/// Shows progress on standard error.
pub(crate) struct Progress {
    quiet: bool,
    terminal: bool,
    state: Mutex<State>,
}

struct State {
    current: Option<Current>,
    /// The bar, one for the whole job.
    bar: Option<ProgressBar>,
    begun: Instant,
    foreseen: Foreseen,
}

/// Expected times of the stages to come, and the actual times of past stages to correct them.
#[derive(Default)]
struct Foreseen {
    /// Names and expected seconds of stages that have not begun.
    stages: VecDeque<(String, f64)>,
    /// Expected seconds of the stages that are over.
    expected: f64,
    took: f64,
}

impl Foreseen {
    /// Returns the expected seconds of a stage that begins.
    fn begin(&mut self, kind: &str) -> Option<f64> {
        // Those before it were done in an earlier run.
        let place = self.stages.iter().position(|(name, _)| name == kind)?;
        self.stages.drain(..=place).next_back().map(|(_, seconds)| seconds)
    }

    /// Returns the seconds that are left when `share` of the current stage took `elapsed` seconds.
    fn left(&self, share: f64, elapsed: f64, expected: Option<f64>) -> Option<f64> {
        let whole = if share > 0.0 { elapsed / share } else { 0.0 };
        let known = share >= 0.1 && expected.is_some();
        let (took, expected_so_far) = match known {
            true => (self.took + whole, self.expected + expected.unwrap_or(0.0)),
            false => (self.took, self.expected),
        };
        let rate = if expected_so_far > 0.0 { took / expected_so_far } else { 1.0 };
        let own = match expected {
            _ if share > 0.0 => whole - elapsed,
            Some(expected) => (rate * expected - elapsed).max(0.0),
            None if self.stages.is_empty() => return None,
            None => 0.0,
        };
        let rest: f64 = self.stages.iter().map(|(_, seconds)| seconds).sum();
        Some(own + rate * rest)
    }
}

struct Current {
    name: String,
    unit: String,
    start: Instant,
    /// Expected seconds of the stage.
    expected: Option<f64>,
    total: usize,
    done: usize,
    told: Instant,
    /// The current state of the work, as text.
    state: String,
}

/// Without a terminal, a line is printed this often.
const INTERVAL: Duration = Duration::from_secs(10);

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let state = State {
            current: None,
            bar: None,
            begun: Instant::now(),
            foreseen: Foreseen::default(),
        };
        Self { quiet, terminal: std::io::stderr().is_terminal(), state: Mutex::new(state) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Fails if the user requested a stop.
pub(crate) fn check() -> Result<(), Error> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

impl State {
    fn bar_aside(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn end(&mut self, quiet: bool) {
        let Some(current) = self.current.take() else { return };
        let seconds = current.start.elapsed().as_secs_f64();
        if let Some(expected) = current.expected {
            self.foreseen.expected += expected;
            self.foreseen.took += seconds;
        }
        if !quiet {
            let units = if current.total > 0 {
                format!("{} {} in ", current.done, current.unit)
            } else {
                String::new()
            };
            self.bar_aside(|| say(&format!("{:<18} {units}{seconds:.1} s", current.name)));
        }
    }
}

impl Current {
    /// Returns the share of the stage that is done; 0 if it has no units to count.
    fn share(&self) -> f64 {
        if self.total > 0 { self.done as f64 / self.total as f64 } else { 0.0 }
    }

    fn text(&self) -> String {
        let Self { name, done, total, unit, state, .. } = self;
        let counted = if *total > 0 { format!(" {done}/{total} {unit}") } else { String::new() };
        let state = if state.is_empty() { String::new() } else { format!(", {state}") };
        format!("{name}{counted}{state}")
    }
}

impl State {
    /// Returns the seconds that the job still takes, if they can be estimated.
    fn left(&self) -> Option<f64> {
        let current = self.current.as_ref()?;
        self.foreseen.left(current.share(), current.start.elapsed().as_secs_f64(), current.expected)
    }

    /// Draws the bar.
    fn draw(&self) {
        let (Some(bar), Some(current)) = (&self.bar, &self.current) else { return };
        let left = self.left();
        let elapsed = self.begun.elapsed().as_secs_f64();
        let share = left.map_or(0.0, |left| elapsed / (elapsed + left).max(f64::MIN_POSITIVE));
        bar.set_position((share * BAR as f64) as u64);
        bar.set_prefix(left.map_or(String::new(), |left| format!("{} left", short(left))));
        bar.set_message(current.text());
    }
}

/// The length of the bar, in its units.
const BAR: u64 = 1000;

/// Formats seconds in a few characters.
fn short(seconds: f64) -> String {
    match seconds {
        ..90.0 => format!("{seconds:.0} s"),
        ..5400.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.0} days", seconds / 86400.0),
    }
}

impl Observer for Progress {
    fn begin(&self, stage: &str, total: usize, unit: &str) {
        let mut state = self.lock();
        state.end(self.quiet);
        if !self.quiet && self.terminal && state.bar.is_none() {
            // What stands at the end is cut where the terminal ends.
            let template = "{bar:12} {percent:>3}% {prefix:>11}  {wide_msg}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            state.bar =
                Some(ProgressBar::new(BAR).with_style(style).with_finish(ProgressFinish::AndClear));
        }
        let now = Instant::now();
        let (name, unit) = (stage.to_owned(), unit.to_owned());
        let expected = state.foreseen.begin(stage.split(' ').next().unwrap_or_default());
        state.current = Some(Current {
            name,
            unit,
            start: now,
            expected,
            total,
            done: 0,
            told: now,
            state: String::new(),
        });
        state.draw();
    }

    fn advance(&self, amount: usize) -> Result<(), Error> {
        check()?;
        let mut state = self.lock();
        let left = state.left();
        let Some(current) = &mut state.current else { return Ok(()) };
        current.done += amount;
        if self.terminal {
            state.draw();
        } else if !self.quiet && current.told.elapsed() > INTERVAL && current.done < current.total {
            current.told = Instant::now();
            let left = left.map_or(String::new(), |left| format!(", {} left", short(left)));
            say(&format!("{}{left}", current.text()));
        }
        Ok(())
    }

    fn start(&self, stages: &[(&str, f64)]) {
        heed_signals();
        let mut state = self.lock();
        state.begun = Instant::now();
        let stages = stages.iter().filter(|(_, seconds)| *seconds > 0.0);
        let stages = stages.map(|&(name, seconds)| (name.to_owned(), seconds)).collect();
        state.foreseen = Foreseen { stages, ..Foreseen::default() };
    }

    fn finish(&self) {
        let mut state = self.lock();
        state.end(self.quiet);
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn note(&self, line: &str) {
        if !self.quiet {
            self.lock().bar_aside(|| say(line));
        }
    }

    fn say(&self, line: &str) {
        self.lock().bar_aside(|| say(line));
    }

    fn tell(&self, told: &str) {
        let mut state = self.lock();
        let Some(current) = &mut state.current else { return };
        current.state = told.to_owned();
        state.draw();
    }

    fn warn(&self, text: &str) {
        self.lock().bar_aside(|| warn(text));
    }
}
