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
        Some(seed) => vec![seed],
        None => (0..number("SIM_SEEDS").unwrap_or(1000)).collect(),
    };
    let is_replay = seeds.len() == 1;
    let mut report = Report::new();
    let mut failures = Vec::new();
    for seed in seeds {
        let scenario = Scenario::draw(seed);
        match scenario.verify() {
            Ok(run) => report.add(&run),
            Err(error) => failures.push(format!("SEED={seed}: {error}\n{scenario:?}\n")),
        }
    }
    println!("{report}");
    let first = failures.first().cloned().unwrap_or_default();
    assert!(failures.is_empty(), "{} runs fail, the first with {first}", failures.len());
    for (name, count) in report.events() {
        assert!(is_replay || count > 0, "{name} never happened");
    }
    for (name, bias) in report.biases() {
        assert!(is_replay || bias.abs() < 5.0, "{name} is off by {bias} standard deviations");
    }
}

#[test]
fn the_search_alone_follows_its_rules() {
    let num_seeds = number("SIM_SEEDS").unwrap_or(3000);
    let seeds = number("SEED").map_or(1000..1000 + num_seeds, |seed| seed..seed + 1);
    for seed in seeds {
        let scenario = Scenario::draw(seed);
        let verified = scenario.verify_search();
        assert!(verified.is_ok(), "SEED={seed}: {verified:?}\n{scenario:?}");
    }
}
