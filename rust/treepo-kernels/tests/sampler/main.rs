//! The sampler against definitions in f64, at every level and number format.

#![allow(unsafe_code, reason = "the kernels take raw buffers")]

use std::ops::RangeInclusive;

use proptest::prelude::*;
use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::sampler::{NotFinite, SamplingParams};
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

mod step;

use step::{Step, grid, levels, normal, sampled, unit};

const PLAIN: SamplingParams = SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
const GREEDY: SamplingParams = SamplingParams { temperature: 0.0, ..PLAIN };
const BELOW_ONE: f64 = 1.0 - f64::EPSILON / 2.0;

/// d of each entry, by the arithmetic that is documented.
fn distances<T: Element>(row: &[T], temperature: f32) -> Vec<f32> {
    let peak = row.iter().map(|x| x.to_f32()).fold(f32::NEG_INFINITY, f32::max);
    row.iter().map(|x| (x.to_f32() - peak) * (1.0 / temperature)).collect()
}

fn masses(distances: &[f32]) -> Vec<f64> {
    distances.iter().map(|d| f64::from(*d).exp()).collect()
}

/// The smallest d that is kept, by sorting; `slack` moves the target of top-p.
fn threshold(distances: &[f32], params: &SamplingParams, slack: f64) -> f32 {
    let mut sorted = distances.to_vec();
    sorted.sort_by(|x, y| y.total_cmp(x));
    if params.top_k > 0 {
        sorted.truncate(params.top_k);
    }
    let mut kept = sorted[sorted.len() - 1];
    if params.top_p < 1.0 {
        let total: f64 = masses(&sorted).iter().sum();
        let target = f64::from(params.top_p) * total * (1.0 + slack);
        let mut before = 0.0;
        for d in sorted {
            if before >= target {
                break;
            }
            kept = d;
            before += f64::from(d).exp();
        }
    }
    if params.min_p > 0.0 { kept.max(f64::from(params.min_p).ln() as f32) } else { kept }
}

fn check_against_sort<T: Element>(row: &[T], params: &SamplingParams) {
    let distances = distances(row, params.temperature);
    let masses = masses(&distances);
    let log_total = |lowest: f32| {
        let kept = masses.iter().zip(&distances).filter(|(_, d)| **d >= lowest);
        kept.map(|(mass, _)| mass).sum::<f64>().ln()
    };
    // Masses are rounded to f32, so an entry this close to the target falls on either side.
    let bounds = [-1e-5, 1e-5].map(|slack| threshold(&distances, params, slack));
    let totals = bounds.map(log_total);
    let full: f64 = masses.iter().sum();
    let moment: f64 = masses.iter().zip(&distances).map(|(mass, d)| mass * f64::from(*d)).sum();
    let entropy = full.ln() - moment / full;
    for level in levels() {
        let drawn = sampled(level, row, &grid(50), params);
        for (token_id, logprob) in drawn.token_ids.iter().zip(&drawn.logprobs) {
            let d = distances[*token_id as usize];
            assert!(d >= bounds[1], "{level:?} drew d {d} below {}", bounds[1]);
            let allowed = f64::from(d) - totals[1] - 1e-5..=f64::from(d) - totals[0] + 1e-5;
            check_within(f64::from(*logprob), &allowed);
        }
        check_within(f64::from(drawn.entropies[0]), &(entropy - 1e-4..=entropy + 1e-4));
    }
}

fn check_within(actual: f64, allowed: &RangeInclusive<f64>) {
    assert!(allowed.contains(&actual), "{actual} is not in {allowed:?}");
}

fn sampling_params() -> impl Strategy<Value = SamplingParams> {
    let top_k = prop_oneof![Just(0), Just(1), 2..80_usize, 80..6000_usize];
    let top_p = prop_oneof![Just(1.0_f32), Just(1e-6), 0.01..0.999_f32, Just(0.999_999)];
    let min_p = prop_oneof![Just(0.0_f32), Just(1.0), 0.001..1.0_f32];
    let temperature = prop_oneof![Just(1.0_f32), 0.3..3.0_f32];
    (temperature, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| {
        SamplingParams { temperature, top_k, top_p, min_p }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn draws_come_from_the_truncated_distribution(
        vocab_size in 1..5000_usize,
        deviation in 0.0..6.0_f64,
        seed in any::<u32>(),
        params in sampling_params(),
    ) {
        check_against_sort(&normal::<f32>(vocab_size, u64::from(seed), deviation), &params);
        check_against_sort(&normal::<Bf16>(vocab_size, u64::from(seed), deviation), &params);
    }

    #[test]
    fn an_even_grid_of_uniforms_gives_the_distribution(
        vocab_size in 1..2000_usize,
        seed in any::<u32>(),
    ) {
        let row = normal::<f32>(vocab_size, u64::from(seed), 2.0);
        let masses = masses(&distances(&row, 1.0));
        let total: f64 = masses.iter().sum();
        for level in levels() {
            let mut counts = vec![0.0; vocab_size];
            for token_id in sampled(level, &row, &grid(2000), &PLAIN).token_ids {
                counts[token_id as usize] += 1.0;
            }
            for (count, mass) in counts.iter().zip(&masses) {
                // An interval of length p holds 2000 p grid points, give or take one.
                prop_assert!((count - 2000.0 * mass / total).abs() <= 1.01);
            }
        }
    }

    #[test]
    fn token_logprobs_are_those_of_the_draws(
        vocab_size in 1..3000_usize,
        temperature in prop_oneof![Just(0.0_f32), Just(1.0), 0.3..3.0_f32],
        seed in any::<u32>(),
    ) {
        let data = normal::<Bf16>(4 * vocab_size, u64::from(seed), 3.0);
        let params = SamplingParams { temperature, ..PLAIN };
        for level in levels() {
            let step = Step::alone(level, &data, vocab_size);
            let drawn = step.sample(None, &grid(4), &params).expect("finite");
            let targets: Vec<i64> = drawn.token_ids.iter().map(|x| i64::from(*x)).collect();
            prop_assert_eq!(step.token_logprobs(&targets, temperature).expect("finite"), drawn);
        }
    }
}

const TRUNCATED: [SamplingParams; 5] = [
    PLAIN,
    SamplingParams { temperature: 0.7, top_k: 50, ..PLAIN },
    SamplingParams { top_p: 0.95, ..PLAIN },
    SamplingParams { top_k: 1000, top_p: 0.9, ..PLAIN },
    SamplingParams { min_p: 0.05, ..PLAIN },
];

#[test]
fn a_real_vocabulary_is_truncated_like_by_a_sort() {
    for (deviation, params) in [1.0, 4.0].into_iter().flat_map(|d| TRUNCATED.map(|p| (d, p))) {
        check_against_sort(&normal::<f32>(49152, 7, deviation), &params);
        check_against_sort(&normal::<Bf16>(49152, 7, deviation), &params);
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_step_and_team() {
    let (num_rows, vocab_size) = (40, 9001);
    let data = normal::<f32>(num_rows * vocab_size, 3, 2.0);
    let uniforms = grid(num_rows);
    let cases = TRUNCATED.into_iter().chain([GREEDY]);
    for (level, params) in cases.flat_map(|p| levels().into_iter().map(move |l| (l, p))) {
        let step = Step { team: Team::parked(3), ..Step::alone(level, &data, vocab_size) };
        let together = step.sample(None, &uniforms, &params).expect("finite");
        let one_thread = Step::alone(level, &data, vocab_size);
        assert_eq!(one_thread.sample(None, &uniforms, &params), Ok(together.clone()));
        for row in [0, 13, 39] {
            let data = &data[row * vocab_size..][..vocab_size];
            let alone = sampled(level, data, &uniforms[row..=row], &params);
            assert_eq!(alone.token_ids[0], together.token_ids[row]);
            assert_eq!(alone.logprobs[0].to_bits(), together.logprobs[row].to_bits());
            assert_eq!(alone.entropies[0].to_bits(), together.entropies[row].to_bits());
        }
    }
}

#[test]
fn samples_that_share_rows_are_drawn_like_copies_of_them() {
    let vocab_size = 3000;
    let data = normal::<f32>(5 * vocab_size, 4, 2.0);
    let rows = [4, 0, 4, 1, 0, 4_i64];
    let copies: Vec<f32> = rows
        .iter()
        .flat_map(|row| data[*row as usize * vocab_size..][..vocab_size].to_vec())
        .collect();
    for (level, params) in levels().into_iter().flat_map(|l| TRUNCATED.map(|p| (l, p))) {
        let shared = Step::alone(level, &data, vocab_size).sample(Some(&rows), &grid(6), &params);
        assert_eq!(shared, Step::alone(level, &copies, vocab_size).sample(None, &grid(6), &params));
    }
}

/// The statistic of `counts` against `expected`, in deviations from its mean.
fn chi_square(counts: &[f64], expected: &[f64]) -> f64 {
    let sum: f64 = counts.iter().zip(expected).map(|(x, y)| (x - y) * (x - y) / y).sum();
    let freedom = counts.len() as f64 - 1.0;
    (sum - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn random_uniforms_draw_the_distribution() {
    let row = normal::<f32>(1500, 11, 1.0);
    let masses = masses(&distances(&row, 1.0));
    let num_draws = 200_000.0;
    let scale = num_draws / masses.iter().sum::<f64>();
    let expected: Vec<f64> = masses.iter().map(|mass| mass * scale).collect();
    let mut state = 5;
    let uniforms: Vec<f64> = (0..num_draws as usize).map(|_| unit(&mut state)).collect();
    for level in levels() {
        let mut counts = vec![0.0; row.len()];
        for token_id in sampled(level, &row, &uniforms, &PLAIN).token_ids {
            counts[token_id as usize] += 1.0;
        }
        let deviations = chi_square(&counts, &expected);
        assert!(deviations.abs() < 4.0, "{level:?}: {deviations} deviations");
    }
}

#[test]
fn extreme_uniforms_never_draw_a_token_of_probability_0() {
    for (vocab_size, only) in [(8, 0), (8, 7), (1000, 3), (1000, 999), (3000, 1024)] {
        let mut row = vec![-200.0_f32; vocab_size];
        row[only] = 0.0;
        for level in levels() {
            let drawn = sampled(level, &row, &[0.0, 5e-324, 0.5, BELOW_ONE, 1.0], &PLAIN);
            assert_eq!(drawn.token_ids, [only as u32; 5]);
            assert_eq!(drawn.logprobs, [0.0; 5]);
        }
    }
}

#[test]
fn extreme_uniforms_draw_the_first_and_the_last_token_that_are_left() {
    let row: Vec<f32> = (0..600).map(|i| i as f32 * 0.005).collect();
    let params = SamplingParams { top_k: 3, ..PLAIN };
    for level in levels() {
        assert_eq!(sampled(level, &row, &[0.0, BELOW_ONE], &PLAIN).token_ids, [0, 599]);
        assert_eq!(sampled(level, &row, &[0.0, BELOW_ONE], &params).token_ids, [597, 599]);
    }
}

#[test]
fn tokens_that_tie_with_the_last_one_kept_are_kept() {
    let row = [1.0_f32, 2.0, 1.0, 0.0, 1.0];
    for level in levels() {
        for params in [
            SamplingParams { top_k: 2, ..PLAIN },
            SamplingParams { top_p: 0.6, ..PLAIN },
            SamplingParams { min_p: 0.36, ..PLAIN },
        ] {
            let mut token_ids = sampled(level, &row, &grid(100), &params).token_ids;
            token_ids.sort_unstable();
            token_ids.dedup();
            assert_eq!(token_ids, [0, 1, 2, 4], "{params:?}");
        }
    }
}

#[test]
fn equal_logits_are_all_drawn_under_any_truncation() {
    let row = vec![-3.5_f32; 1300];
    for (level, params) in levels().into_iter().flat_map(|l| TRUNCATED.map(|p| (l, p))) {
        let drawn = sampled(level, &row, &grid(1300), &params);
        assert_eq!(drawn.token_ids, (0..1300).collect::<Vec<u32>>());
        check_within(f64::from(drawn.entropies[0]), &(7.1699..=7.1703));
    }
}

#[test]
fn the_strictest_truncations_leave_the_most_likely_token() {
    let row = normal::<f32>(2000, 9, 2.0);
    for level in levels() {
        let best = sampled(level, &row, &[0.0], &GREEDY).token_ids[0];
        for params in [
            SamplingParams { top_k: 1, ..PLAIN },
            SamplingParams { top_p: 1e-30, ..PLAIN },
            SamplingParams { min_p: 1.0, ..PLAIN },
        ] {
            let drawn = sampled(level, &row, &grid(9), &params);
            assert_eq!(drawn.token_ids, [best; 9]);
            assert_eq!(drawn.logprobs, [0.0; 9]);
        }
    }
}

#[test]
fn one_huge_logit_is_drawn_with_certainty() {
    let mut row = normal::<f32>(2000, 9, 2.0);
    row[777] = 1e30;
    for (level, params) in levels().into_iter().flat_map(|l| TRUNCATED.map(|p| (l, p))) {
        let drawn = sampled(level, &row, &[0.0, BELOW_ONE], &params);
        assert_eq!(drawn.token_ids, [777; 2]);
        assert_eq!((drawn.logprobs[0], drawn.entropies[0]), (0.0, 0.0));
    }
}

#[test]
fn greedy_takes_the_first_of_the_most_likely_tokens_at_temperature_1() {
    let mut row = normal::<f32>(2000, 2, 1.0);
    row[600] = 9.0;
    row[601] = 9.0;
    row[1900] = 9.0;
    for level in levels() {
        let drawn = sampled(level, &row, &[0.9], &GREEDY);
        assert_eq!(drawn.token_ids, [600]);
        let step = Step::alone(level, &row, row.len());
        assert_eq!(step.token_logprobs(&[600], 1.0), Ok(drawn));
    }
}

#[test]
fn the_first_row_that_is_not_finite_is_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (level, at) in levels().into_iter().flat_map(|l| [0, 511, 700, 1299].map(|at| (l, at)))
        {
            let mut data = vec![0.0_f32; 60 * 1300];
            data[41 * 1300 + at] = bad;
            data[50 * 1300] = bad;
            let step = Step { team: Team::parked(3), ..Step::alone(level, &data, 1300) };
            for params in [PLAIN, GREEDY, SamplingParams { temperature: 0.6, ..PLAIN }] {
                assert_eq!(step.sample(None, &grid(60), &params), Err(NotFinite { row: 41 }));
            }
            assert_eq!(step.token_logprobs(&[0; 60], 1.0), Err(NotFinite { row: 41 }));
            assert!(step.sample(Some(&[3, 40, 42]), &grid(3), &PLAIN).is_ok());
        }
    }
}

#[test]
fn a_row_without_any_finite_logit_is_named() {
    for (level, bad) in
        levels().into_iter().flat_map(|l| [f32::NAN, f32::NEG_INFINITY].map(|x| (l, x)))
    {
        let data = vec![bad; 700];
        let step = Step::alone(level, &data, 700);
        assert_eq!(step.sample(None, &[0.5], &PLAIN), Err(NotFinite { row: 0 }));
    }
}

#[test]
fn a_step_without_samples_draws_nothing() {
    for level in levels() {
        let drawn = Step::<f32>::alone(level, &[], 10).sample(None, &[], &PLAIN);
        assert_eq!(drawn.map(|drawn| drawn.token_ids), Ok(vec![]));
    }
}

#[test]
#[should_panic(expected = "target 5 is not in the vocabulary of 5")]
fn a_target_beyond_the_vocabulary_is_refused() {
    let result = Step::alone(Level::Portable, &[0.0_f32; 5], 5).token_logprobs(&[5], 1.0);
    drop(result);
}
