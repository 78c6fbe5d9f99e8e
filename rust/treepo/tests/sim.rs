//! The laws over hundreds of simulated runs.
//!
//! `SEED=n` replays one run, `SIM_SEEDS=n` sets how many are drawn.
#![cfg(feature = "sim")]

use treepo::sim::{Report, Scenario};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn the_laws_hold_over_many_runs_in_which_everything_happens() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(600),
    };
    let is_replay = seeds.end - seeds.start == 1;
    let mut report = Report::default();
    for seed in seeds {
        let scenario = Scenario::draw(seed);
        match scenario.verify() {
            Ok(run) => report.add(&run),
            Err(error) => panic!("SEED={seed}: {error}\n{scenario:#?}"),
        }
    }
    println!("{report}");
    for (name, count) in report.events() {
        assert!(is_replay || *count > 0, "{name} never happened");
    }
}
