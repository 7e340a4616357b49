//! Peak memory of this process and memory of this machine, where the system tells (Linux).

/// The largest resident size since the last [`reset`], in bytes; 0 where it is not known.
pub(crate) fn peak() -> u64 {
    bytes("/proc/self/status", "VmHWM:").unwrap_or(0)
}

/// The memory of this machine with what it can swap, in bytes.
pub(crate) fn of_machine() -> Option<u64> {
    let bytes = |name| bytes("/proc/meminfo", name);
    Some(bytes("MemTotal:")?.saturating_add(bytes("SwapTotal:").unwrap_or(0)))
}

/// A line of a file of the system, in bytes.
fn bytes(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Starts counting anew; where the system does not allow it, a stage's peak is that of the process so far.
pub(crate) fn reset() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
