//! Work without a kernel in it: no TAP, no socket, no FUSE, no files.

mod netstack;
mod overlay;
mod seccomp;

use anyhow::Result;

/// Does a fixed amount of work each time it is called.
pub type Run = Box<dyn FnMut() -> Result<()>>;

/// Something whose speed is measured.
pub struct Workload {
    /// Path of words, without the suite's.
    pub id: &'static str,
    /// For people.
    pub title: &'static str,
    /// What is counted: `frames`, `names` …
    pub units: &'static str,
    /// How many of these each call does.
    pub per_call: u64,
    /// Makes one, ready to run.
    pub make: fn() -> Result<Run>,
}

/// Every workload.
#[must_use]
pub fn workloads() -> Vec<Workload> {
    [netstack::WORKLOADS, overlay::WORKLOADS, seccomp::WORKLOADS]
        .into_iter()
        .flatten()
        .map(|workload| Workload { ..*workload })
        .collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn every_workload_does_its_work_again_and_again() {
        for workload in workloads() {
            let mut run = (workload.make)().expect(workload.id);
            for _ in 0..3 {
                run().expect(workload.id);
            }
            assert!(workload.per_call > 0);
        }
    }
}
