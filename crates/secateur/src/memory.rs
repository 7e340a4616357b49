//! Memory of this process and of this machine, if the system reports it (Linux).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Returns the largest resident size of the process so far, in bytes; 0 if it is not known.
pub(crate) fn peak() -> u64 {
    bytes("/proc/self/status", "VmHWM:").unwrap_or(0)
}

/// Returns the resident size of the process, in bytes; 0 if it is not known.
fn resident() -> u64 {
    bytes("/proc/self/status", "VmRSS:").unwrap_or(0)
}

/// Returns the memory of this machine with its swap, in bytes, or the limit of the process, if that
/// is less.
pub(crate) fn of_machine() -> Option<u64> {
    let bytes = |name| bytes("/proc/meminfo", name);
    let machine = bytes("MemTotal:")?.saturating_add(bytes("SwapTotal:").unwrap_or(0));
    Some(of_group().map_or(machine, |most| most.min(machine)))
}

/// Returns the least limit, in bytes, of the control groups that the process is in, as in
/// containers.
fn of_group() -> Option<u64> {
    let root = Path::new("/sys/fs/cgroup");
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = root.join(groups.lines().find_map(|line| line.strip_prefix("0::/"))?);
    let limit =
        |group: &Path| std::fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok();
    own.ancestors().take_while(|group| group.starts_with(root)).filter_map(limit).min()
}

/// Returns the value of a line in a system file, in bytes.
fn bytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Watches the resident size, to measure the peak of each part of a run. The system's own peak
/// counter is not reset, as the user's tools read it.
pub(crate) struct Watch(Arc<AtomicU64>);

impl Watch {
    const INTERVAL: Duration = Duration::from_millis(10);

    /// Starts a thread that watches. It ends when this is dropped.
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

    /// Returns the peak since the last call, in bytes; 0 if it is not known.
    pub(crate) fn take(&self) -> u64 {
        let now = resident();
        self.0.swap(now, Ordering::Relaxed).max(now)
    }
}
