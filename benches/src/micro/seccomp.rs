//! The system call filter, compiled anew: what the first container after an upgrade
//! waits for.

use anyhow::ensure;

use super::Workload;

pub(super) const WORKLOADS: &[Workload] = &[Workload {
    id: "seccomp/compile",
    title: "The system call filter compiled",
    units: "filters",
    per_call: 1,
    make: || {
        Ok(Box::new(|| {
            let filter = launcher::policy::seccomp(false)?;
            ensure!(!filter.is_empty(), "an empty filter");
            Ok(())
        }))
    },
}];
