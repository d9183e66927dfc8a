//! Workloads over the pure cores of the programs, for micro-benchmarks: the same
//! are run by `cargo bench -p benches` (criterion, to see what a change does) and by
//! `bench micro` (for the record beside the other suites).

pub mod micro;
