//! `cargo bench -p benches`: the workloads under criterion, which says whether a
//! change made a difference. `-- --save-baseline NAME` keeps a state to compare with.

use std::time::Duration;

use benches::micro::workloads;
use criterion::{Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30)
        .configure_from_args();
    for workload in workloads() {
        let mut group = criterion.benchmark_group(workload.id);
        group.throughput(Throughput::Elements(workload.per_call));
        let mut run =
            (workload.make)().unwrap_or_else(|error| panic!("{}: {error:#}", workload.id));
        group.bench_function(workload.units, |bencher| {
            bencher.iter(|| run().unwrap_or_else(|error| panic!("{}: {error:#}", workload.id)));
        });
        group.finish();
    }
    criterion.final_summary();
}
