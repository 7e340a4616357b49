//! Many cases on all cores, and their figures.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The tests of a program run at the same time; only one of them at a time uses the cores.
static CORES: Mutex<()> = Mutex::new(());

/// Does the work of all cases, as many at a time as there are cores, and returns the problems of
/// those that failed.
pub(crate) fn each<T: Sync>(
    cases: &[T],
    work: impl Fn(&T) -> Result<(), String> + Sync,
) -> Vec<String> {
    let _cores = CORES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || {
        while let Some((index, case)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, cases.get(n)?)))
        {
            let result = catch_unwind(AssertUnwindSafe(|| work(case)));
            if let Err(problem) =
                result.unwrap_or_else(|_| Err("the test itself panicked: see above".into()))
            {
                failures.lock().unwrap().push((index, problem));
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(worker))));
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    failures.into_iter().map(|(_, problem)| problem).collect()
}

/// How many cases were tried, and how many of them survived.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) tried: usize,
    pub(crate) survived: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.tried += other.tried;
        self.survived += other.survived;
    }
}

/// The figures are shown of tests that succeed too: standard error itself is not captured.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Prints how many of the cases survived, and the problems of the first that did not.
pub(crate) fn tell(what: &str, tried: usize, failures: &[String]) -> Tally {
    const SHOWN: usize = 8;
    let survived = tried - failures.len();
    let mut text = format!("{what}: tried {tried}, survived {survived}\n");
    for problem in failures.iter().take(SHOWN) {
        text += &format!("  {}\n", problem.trim_end().replace('\n', "\n    "));
    }
    if failures.len() > SHOWN {
        text += &format!("  and {} more\n", failures.len() - SHOWN);
    }
    say(&text);
    Tally { tried, survived }
}

/// Prints the row of a table in `docs/reliability.md`, and fails if a case did.
pub(crate) fn row(name: &str, tallies: &[Tally]) {
    let cells: Vec<String> =
        tallies.iter().map(|tally| format!("{} / {}", tally.tried, tally.survived)).collect();
    say(&format!("| {name} | {} |\n", cells.join(" | ")));
    assert!(
        tallies.iter().all(|tally| tally.survived == tally.tried),
        "some cases did not survive: see above"
    );
}

/// The number in an environment variable.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}
