//! Memory of this process and of this machine, where the system tells (Linux).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The largest resident size of the process so far, in bytes; 0 where it is not known.
pub(crate) fn peak() -> u64 {
    bytes("/proc/self/status", "VmHWM:").unwrap_or(0)
}

/// The resident size of the process, in bytes; 0 where it is not known.
fn resident() -> u64 {
    bytes("/proc/self/status", "VmRSS:").unwrap_or(0)
}

/// The memory of this machine with what it can swap, or less where the process may have less, in
/// bytes.
pub(crate) fn of_machine() -> Option<u64> {
    let bytes = |name| bytes("/proc/meminfo", name);
    let machine = bytes("MemTotal:")?.saturating_add(bytes("SwapTotal:").unwrap_or(0));
    Some(of_group().map_or(machine, |most| most.min(machine)))
}

/// The least limit of the control groups that the process is in, as containers have.
fn of_group() -> Option<u64> {
    let root = Path::new("/sys/fs/cgroup");
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = root.join(groups.lines().find_map(|line| line.strip_prefix("0::/"))?);
    let limit =
        |group: &Path| std::fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok();
    own.ancestors().take_while(|group| group.starts_with(root)).filter_map(limit).min()
}

/// A line of a file of the system, in bytes.
fn bytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Watches the resident size, so that parts of a run have peaks of their own. The system's counter
/// is not reset: it is what the user's tools read.
pub(crate) struct Watch(Arc<AtomicU64>);

impl Watch {
    const INTERVAL: Duration = Duration::from_millis(10);

    /// The thread that looks ends when this is dropped.
    pub(crate) fn new() -> Self {
        let most = Arc::new(AtomicU64::new(resident()));
        let watched = Arc::downgrade(&most);
        // Where there is no thread to be had, peaks are those at the ends of the parts.
        let _ =
            thread::Builder::new().name("memory".into()).stack_size(64 * 1024).spawn(move || {
                while let Some(most) = watched.upgrade() {
                    match resident() {
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
        let now = resident();
        self.0.swap(now, Ordering::Relaxed).max(now)
    }
}
