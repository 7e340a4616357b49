//! Many cases on all cores, and their figures.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The tests of a program run at the same time; only one of them at a time uses the cores.
static CORES: Mutex<()> = Mutex::new(());

/// Does the work of all cases, as many at a time as there are cores, and returns the problems of those that failed.
pub(crate) fn each<T: Sync>(cases: &[T], work: impl Fn(&T) -> Result<(), String> + Sync) -> Vec<String> {
    let _cores = CORES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || {
        while let Some((index, case)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, cases.get(n)?)))
        {
            let result = catch_unwind(AssertUnwindSafe(|| work(case)));
            if let Err(problem) = result.unwrap_or_else(|_| Err("the test itself panicked: see above".into())) {
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

/// Prints how many of the cases survived, and the problems of the first that did not; tells whether all did.
pub(crate) fn tell(what: &str, tried: usize, failures: &[String]) -> bool {
    const SHOWN: usize = 8;
    let mut text = format!("{what}: tried {tried}, survived {}\n", tried - failures.len());
    for problem in failures.iter().take(SHOWN) {
        text += &format!("  {}\n", problem.trim_end().replace('\n', "\n    "));
    }
    if failures.len() > SHOWN {
        text += &format!("  and {} more\n", failures.len() - SHOWN);
    }
    // The figures are shown of tests that succeed too: standard error itself is not captured.
    let _ = std::io::stderr().write_all(text.as_bytes());
    failures.is_empty()
}

/// The number in an environment variable.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}
