//! The system call filter, compiled anew: what the first container after an upgrade
//! waits for.

use anyhow::ensure;
use launcher::policy::seccomp::Source;
use launcher::spec::Seccomp;

use super::Workload;

pub(super) const WORKLOADS: &[Workload] = &[Workload {
    id: "seccomp/compile",
    title: "The system call filter compiled",
    units: "filters",
    per_call: 1,
    make: || {
        Ok(Box::new(|| {
            let source = Source {
                seccomp: &Seccomp::Default,
                capabilities: launcher::policy::capabilities(),
                deny: &[],
                single_id: false,
            };
            let filter = source.compile()?;
            ensure!(!filter.is_empty(), "an empty filter");
            Ok(())
        }))
    },
}];
