//! How forks are shared out.

use super::{Hand, config};
use crate::search::TemperatureSchedule::{Constant, Linear, Sinusoid};
use crate::search::{BranchConfig, Prefer, Remainder, SearchConfig};
use crate::sim::caller::Caller;
use crate::sim::rounds::Replay;

fn with<T>(branch: BranchConfig, progress: f32, check: impl FnOnce(&Replay<'_>) -> T) -> T {
    let config = SearchConfig { branch, progress, ..config() };
    Hand::new(1).replay(&config, &Caller::default(), check)
}

#[test]
fn a_drawn_remainder_goes_to_neighbours() {
    let is_even =
        |counts: &[usize]| with(BranchConfig::default(), 0.0, |replay| replay.is_even(counts));
    assert!(is_even(&[1, 0, 0, 1]) && is_even(&[0, 1, 1, 0]) && is_even(&[2, 2, 2, 2]));
    assert!(!is_even(&[1, 0, 1, 0]) && !is_even(&[2, 0, 0, 0]) && !is_even(&[0, 0, 2, 0]));
}

#[test]
fn the_last_path_gets_the_remainder() {
    let branch = BranchConfig { remainder: Remainder::Last, ..BranchConfig::default() };
    let is_even = |counts: &[usize]| with(branch, 0.0, |replay| replay.is_even(counts));
    assert!(is_even(&[0, 0, 0, 2]) && is_even(&[2, 2, 2, 3]) && is_even(&[1, 1]));
    assert!(!is_even(&[0, 0, 1, 1]) && !is_even(&[2, 0, 0, 0]));
}

#[test]
fn weights_are_a_softmax_with_largest_remainders() {
    let is_weighted = |prefer, counts: &[usize]| {
        let branch = BranchConfig { prefer, temperature: 0.5, ..BranchConfig::default() };
        let values = [0.0, 0.5 * f64::ln(3.0), 0.5 * f64::ln(4.0)]; // weights 1 : 3 : 4
        with(branch, 0.0, |replay| replay.is_weighted(counts, &values))
    };
    assert!(is_weighted(Prefer::High, &[1, 3, 4]));
    assert!(is_weighted(Prefer::High, &[0, 1, 2]), "quotas 0.375, 1.125, 1.5");
    assert!(is_weighted(Prefer::High, &[1, 2, 2]), "quotas 0.625, 1.875, 2.5");
    assert!(!is_weighted(Prefer::High, &[0, 2, 3]));
    assert!(!is_weighted(Prefer::High, &[1, 1, 1]));
    assert!(!is_weighted(Prefer::High, &[4, 3, 1]));
    assert!(is_weighted(Prefer::Low, &[12, 4, 3]));
    assert!(!is_weighted(Prefer::Low, &[1, 3, 4]));
}

#[test]
fn temperatures_follow_their_schedule() {
    let cases = [
        (Constant, 0.7, 1.0),
        (Linear, 0.25, 1.5),
        (Sinusoid, 0.0, 1.0),
        (Sinusoid, 0.5, 2.0),
        (Sinusoid, 1.0, 3.0),
        (Sinusoid, 0.25, 2.0 - f64::sqrt(0.5)),
    ];
    for (schedule, progress, expected) in cases {
        let branch = BranchConfig {
            temperature: 1.0,
            final_temperature: 3.0,
            schedule,
            ..BranchConfig::default()
        };
        let is_close = |replay: &Replay<'_>| (replay.temperature() - expected).abs() < 1e-9;
        assert!(with(branch, progress, is_close), "{schedule:?} at {progress}");
    }
}
