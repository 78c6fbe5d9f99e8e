//! The cases of the benches for scripts, without statistics.
//!
//!     cargo bench --package treepo --bench cases                  # every case, as JSON
//!     cargo bench --package treepo --bench cases -- 9 fork_64     # nine runs of these
//!     cargo bench --package treepo --bench cases -- build fork_64 # its state alone
//!     cargo bench --package treepo --bench cases -- run fork_64   # its state and one run
//!     cargo bench --package treepo --bench cases -- sizes         # operations of a run, as JSON
#![allow(clippy::print_stdout, reason = "the figures are the output")]

mod cases;

use std::process::ExitCode;

use cases::{CASES, Case};

const NUM_RUNS: u32 = 5;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (mode, names) = match words.split_first() {
        None => (NUM_RUNS.to_string(), [].as_slice()),
        Some((mode, names)) => (mode.clone(), names),
    };
    let unknown = names.iter().find(|&name| CASES.iter().all(|case| case.name != name));
    if let Some(name) = unknown {
        let known: Vec<_> = CASES.iter().map(|case| case.name).collect();
        println!("unknown case {name}, known are {}", known.join(", "));
        return ExitCode::from(2);
    }
    let is_chosen = |case: &&Case| names.is_empty() || names.iter().any(|name| name == case.name);
    let chosen: Vec<&Case> = CASES.iter().filter(is_chosen).collect();
    match (mode.as_str(), mode.parse()) {
        ("build", _) => chosen.iter().for_each(|case| build(case)),
        ("run", _) => chosen.iter().for_each(|case| build_and_run(case)),
        ("sizes", _) => print_object(&chosen, |case| case.num_items.to_string()),
        (_, Ok(num_runs)) => print_times(&chosen, num_runs),
        _ => {
            println!("expected build, run, sizes or a number of runs, got {mode}");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Builds a case's state. Nothing is dropped, here and below, so that the two differ in the run
/// alone.
fn build(case: &Case) {
    std::mem::forget(case.build());
}

fn build_and_run(case: &Case) {
    let mut run = case.build();
    run();
    std::mem::forget(run);
}

/// Prints an object from each case's name to its runs, in nanoseconds an operation.
fn print_times(cases: &[&Case], num_runs: u32) {
    print_object(cases, |case| {
        let runs: Vec<String> = (0..num_runs).map(|_| format!("{:.2}", time(case))).collect();
        format!("[{}]", runs.join(", "))
    });
}

fn print_object(cases: &[&Case], value: impl Fn(&Case) -> String) {
    let members: Vec<String> =
        cases.iter().map(|case| format!("\"{}\": {}", case.name, value(case))).collect();
    println!("{{{}}}", members.join(",\n "));
}

/// Nanoseconds of one operation.
#[allow(clippy::disallowed_methods, reason = "a bench takes the time, the core does not")]
fn time(case: &Case) -> f64 {
    let mut run = case.build();
    let began = std::time::Instant::now();
    run();
    began.elapsed().as_nanos() as f64 / f64::from(case.num_items)
}
