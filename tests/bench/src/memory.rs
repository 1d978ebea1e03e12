//! Memory of processes as the kernel sums it.

use std::fs;

/// Megabytes, as bars are stated.
pub(crate) const MB: f64 = 1e6;

/// Proportional set size: all mappings, shared pages divided among those who share them. Megabytes.
pub(crate) fn pss_mb(pid: i32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .expect("root may read another process's memory map");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .expect("the kernel sums the proportional set size");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
    kib * 1024.0 / MB
}

/// Pids of a process's children, those of its first thread.
pub(crate) fn children_of(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}
