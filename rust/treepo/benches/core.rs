//! Timings of the core: `cargo bench --package treepo --bench core [-- FILTER]`.
//!
//! A run does its operation many times; `thrpt` counts operations. Instruction counts of the same
//! cases: `benches/instruction_counts.py`.

mod cases;

use criterion::{BatchSize, Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    let mut group = criterion.benchmark_group("core");
    for case in &cases::CASES {
        group.throughput(Throughput::Elements(u64::from(case.num_items)));
        group.bench_function(case.name, |bencher| {
            let once = |mut run: cases::Run| {
                run();
                run // dropped outside of the timing
            };
            bencher.iter_batched(|| case.build(), once, BatchSize::PerIteration);
        });
    }
    group.finish();
    criterion.final_summary();
}
