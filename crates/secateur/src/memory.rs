//! Memory of this process, where the system tells (Linux).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The largest resident size of the process so far, in bytes; 0 where it is not known.
pub(crate) fn peak() -> u64 {
    status("VmHWM:")
}

/// A line of the process's status that counts kibibytes, in bytes.
fn status(name: &str) -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|n| n.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Watches the resident size, so that parts of a run have peaks of their own. The system's counter is not reset: it is
/// what the user's tools read.
pub(crate) struct Watch(Arc<AtomicU64>);

impl Watch {
    const INTERVAL: Duration = Duration::from_millis(10);

    /// The thread that looks ends when this is dropped.
    pub(crate) fn new() -> Self {
        let most = Arc::new(AtomicU64::new(status("VmRSS:")));
        let watched = Arc::downgrade(&most);
        // Where there is no thread to be had, peaks are those at the ends of the parts.
        let _ = thread::Builder::new().name("memory".into()).stack_size(64 * 1024).spawn(move || {
            while let Some(most) = watched.upgrade() {
                match status("VmRSS:") {
                    // The system does not tell.
                    0 => break,
                    now => most.fetch_max(now, Ordering::Relaxed),
                };
                drop(most);
                thread::sleep(Self::INTERVAL);
            }
        });
        Self(most)
    }

    /// The most that was seen since the last time, in bytes; 0 where it is not known.
    pub(crate) fn take(&self) -> u64 {
        let now = status("VmRSS:");
        self.0.swap(now, Ordering::Relaxed).max(now)
    }
}
