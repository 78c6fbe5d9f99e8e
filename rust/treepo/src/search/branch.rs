//! How the live paths of a tree share its budget at the end of a round.

use std::f64::consts::PI;

use super::view;
use super::walk::backwards;
use super::{BranchBy, BranchConfig, Prefer, Remainder, SearchConfig, TemperatureSchedule};
use crate::forest::{PathToken, Tree};
use crate::ids::PathId;
use crate::key::{Purpose, Stream};

/// Buffers of a weighted split.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    values: Vec<f64>,
    order: Vec<(f64, u32)>,
}

/// Splits `total` evenly; the remainder goes to neighbours from a keyed random place on, so that
/// no path is preferred, or to the last path.
pub(super) fn even_split(
    config: &BranchConfig,
    total: u32,
    num_live: u32,
    stream: Stream,
    round: u32,
    out: &mut Vec<u32>,
) {
    let (share, remainder) = (total / num_live, total % num_live);
    out.clear();
    match config.remainder {
        Remainder::Drawn => {
            let first = stream.below(Purpose::Branch, u64::from(round), num_live);
            let more = |i: u32| u32::from((i + num_live - first) % num_live < remainder);
            out.extend((0..num_live).map(|i| share + more(i)));
        }
        Remainder::Last => {
            out.extend((0..num_live).map(|_| share));
            if let Some(last) = out.last_mut() {
                *last += remainder;
            }
        }
    }
}

/// Splits `total` over the live paths by the config's weighting: one each, the rest by softmax of
/// `-+(x - min x) / T` with the largest remainder. O(tokens of the paths) at most.
pub(super) fn weighted_split(
    config: &SearchConfig,
    tree: &Tree,
    total: u32,
    live: &[PathId],
    scores: impl Fn(PathId) -> f32,
    scratch: &mut Scratch,
    out: &mut Vec<u32>,
) {
    scratch.values.clear();
    for &path in live {
        let value = match config.branch.by {
            BranchBy::Score => f64::from(scores(path)),
            by => token_value(by, tree, path),
        };
        scratch.values.push(value);
    }
    let temperature = temperature(&config.branch, config.progress);
    softmax(config.branch.prefer, temperature, &mut scratch.values);
    largest_remainder(total, scratch, out);
}

/// What a path is weighted by, from its sampled tokens; 0 where it has none.
fn token_value(by: BranchBy, tree: &Tree, path: PathId) -> f64 {
    let is_of_segment = matches!(by, BranchBy::SegmentLogprob | BranchBy::SegmentEntropy);
    let start = if is_of_segment {
        view::boundary(tree, path, tree.own(path).len() - 1)
    } else {
        tree.prompt_len
    };
    let tokens = backwards(tree, path).take_while(|token| token.position >= start);
    let (mut sum, mut count) = (0.0, 0u32);
    for PathToken { logprob, entropy, .. } in tokens.filter(|token| token.is_sampled) {
        sum += f64::from(if by == BranchBy::SegmentEntropy { entropy } else { logprob });
        count += 1;
    }
    if by == BranchBy::PathLogprob { sum } else { sum / f64::from(count.max(1)) }
}

/// The temperature at this progress of the training.
fn temperature(config: &BranchConfig, progress: f32) -> f64 {
    let (from, to) = (f64::from(config.temperature), f64::from(config.final_temperature));
    let progress = f64::from(progress);
    match config.schedule {
        TemperatureSchedule::Constant => from,
        TemperatureSchedule::Linear => from + (to - from) * progress,
        TemperatureSchedule::Sinusoid => {
            f64::midpoint(from, to) + (to - from) / 2.0 * (PI * progress - PI / 2.0).sin()
        }
    }
}

/// Turns values into shares that add up to 1. The largest exponent is 0, so nothing overflows.
fn softmax(prefer: Prefer, temperature: f64, values: &mut [f64]) {
    let sign = match prefer {
        Prefer::Low => -1.0,
        Prefer::High => 1.0,
    };
    let largest = values.iter().map(|x| sign * x).fold(f64::NEG_INFINITY, f64::max);
    for value in values.iter_mut() {
        *value = ((sign * *value - largest) / temperature).exp();
    }
    let sum: f64 = values.iter().sum();
    for value in values {
        *value /= sum;
    }
}

/// One each, the rest by whole shares, what is left to the largest fractions, the first of equals.
fn largest_remainder(total: u32, scratch: &mut Scratch, out: &mut Vec<u32>) {
    let Scratch { values, order } = scratch;
    let rest = total.saturating_sub(values.len() as u32);
    out.clear();
    order.clear();
    for (i, share) in values.iter().enumerate() {
        let wanted = share * f64::from(rest);
        out.push(1 + wanted as u32);
        order.push((wanted.fract(), i as u32));
    }
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let given: u32 = out.iter().map(|count| count - 1).sum();
    for i in 0..rest.saturating_sub(given) as usize {
        out[order[i % order.len()].1 as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn even(remainder: Remainder, total: u32, num_live: u32, round: u32) -> Vec<u32> {
        let config = BranchConfig { remainder, ..BranchConfig::default() };
        let mut out = Vec::new();
        even_split(&config, total, num_live, Stream::of_tree(3, 4), round, &mut out);
        out
    }

    fn weighted(prefer: Prefer, temperature: f64, total: u32, values: &[f64]) -> Vec<u32> {
        let mut scratch = Scratch { values: values.to_vec(), order: Vec::new() };
        let mut out = Vec::new();
        softmax(prefer, temperature, &mut scratch.values);
        largest_remainder(total, &mut scratch, &mut out);
        out
    }

    #[test]
    fn a_split_uses_the_whole_budget_and_is_even() {
        for round in 0..50 {
            let parts = even(Remainder::Drawn, 17, 5, round);
            assert_eq!(parts.iter().sum::<u32>(), 17);
            assert!(parts.iter().all(|part| (3..=4).contains(part)), "{parts:?}");
        }
    }

    #[test]
    fn the_last_path_gets_the_remainder_of_the_published_script() {
        assert_eq!(even(Remainder::Last, 16, 5, 0), [3, 3, 3, 3, 4]);
        assert_eq!(even(Remainder::Last, 13, 5, 0), [2, 2, 2, 2, 5]);
    }

    #[test]
    fn shares_are_the_softmax_of_the_distance_to_the_least() {
        // weights e^0 : e^-ln 3 = 3 : 1, of 4 beyond one each
        let values = [-2.0, -2.0 + 3.0_f64.ln()];
        assert_eq!(weighted(Prefer::Low, 1.0, 6, &values), [4, 2]);
        assert_eq!(weighted(Prefer::High, 1.0, 6, &values), [2, 4]);
        // at half the temperature 9 : 1, of 10
        assert_eq!(weighted(Prefer::Low, 0.5, 12, &values), [10, 2]);
    }

    #[test]
    fn what_is_left_goes_to_the_largest_fraction_and_then_to_the_first() {
        // 3 : 1 of 3 is 2.25 and 0.75
        assert_eq!(weighted(Prefer::Low, 1.0, 5, &[0.0, 3.0_f64.ln()]), [3, 2]);
        assert_eq!(weighted(Prefer::Low, 1.0, 8, &[1.0, 1.0, 1.0]), [3, 3, 2]);
        assert_eq!(weighted(Prefer::Low, 1.0, 3, &[0.0, 900.0, 1e9]), [1, 1, 1]);
        assert_eq!(weighted(Prefer::High, 1e-3, 9, &[0.0, 900.0, 1e9]), [1, 1, 7]);
    }

    #[test]
    fn a_schedule_goes_from_its_first_temperature_to_its_last() {
        let at = |schedule, progress| {
            let config = BranchConfig {
                temperature: 5.0,
                final_temperature: 1.0,
                schedule,
                ..BranchConfig::default()
            };
            temperature(&config, progress)
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} is not {b}");
        near(at(TemperatureSchedule::Constant, 0.7), 5.0);
        near(at(TemperatureSchedule::Linear, 0.25), 4.0);
        near(at(TemperatureSchedule::Sinusoid, 0.0), 5.0);
        near(at(TemperatureSchedule::Sinusoid, 0.5), 3.0);
        near(at(TemperatureSchedule::Sinusoid, 1.0), 1.0);
        near(at(TemperatureSchedule::Sinusoid, 0.25), 3.0 + 2.0 * 0.5_f64.sqrt());
    }
}
