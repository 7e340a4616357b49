//! Peak memory of this process, where the system tells (Linux).

/// The largest resident size since the last [`reset`], in bytes; 0 where it is not known.
pub(crate) fn peak() -> u64 {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|n| n.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Starts counting anew; where the system does not allow it, a stage's peak is that of the process so far.
pub(crate) fn reset() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
