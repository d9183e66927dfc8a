//! Paths of the kernel's own file systems that namespaces do not separate.

/// Paths inside the container that are hidden: a file under `/dev/null`, a
/// directory under an empty read-only tmpfs. Missing ones are passed over.
pub const MASKED_PATHS: &[&str] = &[
    // The machine: tables of its firmware, its memory, its sound cards, disks.
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/scsi",
    "/sys/dev/block",
    "/sys/firmware",
    // Power readings tell what others compute (CVE-2020-8694), so do counts of interrupts.
    "/proc/interrupts",
    "/sys/devices/virtual/powercap",
    // Keys and kernel statistics of all users.
    "/proc/keys",
    "/proc/key-users",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    // Other policies' switches.
    "/sys/fs/selinux",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/kernel/tracing",
];

/// Paths inside the container that are made read-only, with all below them.
pub const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn paths_are_absolute_plain_and_below_the_kernels_own() {
        for path in MASKED_PATHS.iter().chain(READONLY_PATHS).map(Path::new) {
            assert!(path.starts_with("/proc") || path.starts_with("/sys"), "{}", path.display());
            let plain: std::path::PathBuf = path.components().collect();
            assert_eq!(plain.as_os_str(), path.as_os_str());
        }
    }
}
