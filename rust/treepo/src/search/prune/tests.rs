//! Tests of the module above.

use proptest::prelude::*;

use super::super::walk::fixture::{Flat, Model, model};
use super::*;

fn config(by: PruneBy, window: u32) -> PruneConfig {
    PruneConfig { by, window, threshold: -1.0, ..PruneConfig::default() }
}

fn warmup(num_leaves: u32, quantile: f32) -> PruneConfig {
    PruneConfig {
        warmup_leaves: num_leaves,
        warmup_quantile: quantile,
        ..config(PruneBy::Logprob, 2)
    }
}

/// A path of tokens with these log-probabilities and entropies of twice as much.
fn path_of(logprobs: &[f32]) -> Model {
    let mut model = Model::new(3, &[1, 2]);
    for &logprob in logprobs {
        model.push(PathId(0), 5, logprob, -2.0 * logprob);
    }
    model
}

fn confidence_of(config: &PruneConfig, model: &Model, path: u32) -> Option<f32> {
    confidence(config, model.tree(), PathId(path))
}

#[test]
fn confidence_is_the_mean_of_the_last_window() {
    let model = path_of(&[-9.0, -9.0, -1.0, -2.0]);
    assert_eq!(confidence_of(&config(PruneBy::Logprob, 2), &model, 0), Some(-1.5));
    assert_eq!(confidence_of(&config(PruneBy::Entropy, 2), &model, 0), Some(-3.0));
    assert_eq!(confidence_of(&config(PruneBy::Logprob, 4), &model, 0), Some(-5.25));
}

#[test]
fn confidence_is_looked_at_only_at_multiples_of_the_window() {
    for len in 0..12 {
        let model = path_of(&vec![-1.0; len]);
        let found = confidence_of(&config(PruneBy::Logprob, 4), &model, 0);
        assert_eq!(found.is_some(), len == 4 || len == 8, "{len}");
    }
}

#[test]
fn rules_that_do_not_look_at_tokens_have_no_confidence() {
    let model = path_of(&[-1.0, -1.0]);
    for by in [PruneBy::Nothing, PruneBy::Score] {
        assert_eq!(confidence_of(&config(by, 2), &model, 0), None);
    }
    assert_eq!(confidence_of(&config(PruneBy::Logprob, 0), &model, 0), None);
}

#[test]
fn a_window_reaches_over_the_fork_to_the_ancestors() {
    let mut model = path_of(&[-1.0, -2.0, -100.0]);
    let fork = model.fork(PathId(0), 4);
    model.push(fork, 5, -3.0, 1.0);
    model.push(fork, 5, -6.0, 1.0);
    assert_eq!(confidence_of(&config(PruneBy::Logprob, 4), &model, fork.0), Some(-3.0));
}

#[test]
fn given_tokens_are_passed_over() {
    let mut model = path_of(&[-1.0, -3.0]);
    model.give(PathId(0), &[5]);
    model.push(PathId(0), 5, -5.0, 0.0);
    assert_eq!(confidence_of(&config(PruneBy::Logprob, 2), &model, 0), Some(-4.0));
    assert_eq!(confidence_of(&config(PruneBy::Logprob, 4), &model, 0), None, "three sampled");
    model.give(PathId(0), &[5, 5]);
    assert_eq!(confidence_of(&config(PruneBy::Logprob, 2), &model, 0), None, "just given");
}

#[test]
fn a_fixed_threshold_prunes_what_lies_below_it() {
    let config = config(PruneBy::Logprob, 2);
    let threshold = Threshold::new(&config);
    assert_eq!(threshold.value(), Some(-1.0));
    assert!(should_prune(&config, &threshold, Some(-1.25)));
    assert!(!should_prune(&config, &threshold, Some(-1.0)));
    assert!(!should_prune(&config, &threshold, None));
    let off = PruneConfig { by: PruneBy::Nothing, ..config };
    assert!(!should_prune(&off, &threshold, Some(-9.0)));
}

#[test]
fn the_warm_up_prunes_nothing_until_its_last_leaf() {
    let config = warmup(3, 0.5);
    let mut threshold = Threshold::new(&config);
    for logprobs in [[-1.0, -1.0], [-2.0, -2.0]] {
        threshold.observe_leaf(&config, path_of(&logprobs).tree(), PathId(0));
        assert_eq!(threshold.value(), None);
        assert!(!should_prune(&config, &threshold, Some(f32::MIN)));
    }
    threshold.observe_leaf(&config, path_of(&[-4.0, -4.0, 0.0, 0.0]).tree(), PathId(0));
    assert_eq!(threshold.value(), Some(-2.0));
    threshold.observe_leaf(&config, path_of(&[-9.0, -9.0]).tree(), PathId(0));
    assert_eq!(threshold.value(), Some(-2.0), "later leaves change nothing");
}

#[test]
fn a_leaf_without_a_window_is_counted_but_has_no_part_in_the_quantile() {
    let config = warmup(2, 0.0);
    let mut threshold = Threshold::new(&config);
    threshold.observe_leaf(&config, path_of(&[-50.0]).tree(), PathId(0));
    threshold.observe_leaf(&config, path_of(&[-2.0, -2.0]).tree(), PathId(0));
    assert_eq!(threshold.value(), Some(-2.0));
    let mut threshold = Threshold::new(&config);
    threshold.observe_lowest(None);
    threshold.observe_lowest(None);
    assert_eq!(threshold.value(), None, "nothing to compare with");
}

#[test]
fn quantiles_interpolate_between_neighbours() {
    let values = [-4.0, -2.0, -1.0, 0.0];
    let expected = [(0.0, -4.0), (0.1, -3.4), (0.5, -1.5), (0.75, -0.75), (1.0, 0.0)];
    for (q, value) in expected {
        let found = quantile(&values, q).unwrap();
        assert!((found - value).abs() < 1e-6, "{q}: {found} is not {value}");
    }
    assert_eq!(quantile(&[3.0], 0.7), Some(3.0));
    assert_eq!(quantile(&[], 0.7), None);
    assert!(quantile(&values, f32::NAN).unwrap().is_nan());
}

fn naive_confidence(config: &PruneConfig, completion: &[Flat]) -> Option<f32> {
    let window = config.window as usize;
    let is_place = !completion.is_empty() && completion.len().is_multiple_of(window);
    if !is_place || completion.last()?.sampled.is_none() {
        return None;
    }
    let values: Vec<f64> = completion
        .iter()
        .filter_map(|token| token.sampled)
        .map(|(logprob, entropy)| match config.by {
            PruneBy::Entropy => -f64::from(entropy),
            _ => f64::from(logprob),
        })
        .collect();
    let last = values.get(values.len().checked_sub(window)?..)?;
    Some((last.iter().sum::<f64>() / window as f64) as f32)
}

proptest! {
    #[test]
    fn confidence_agrees_with_the_flat_completion(
        model in model(9),
        window in 1u32..6,
        by in prop::sample::select(vec![PruneBy::Logprob, PruneBy::Entropy]),
    ) {
        let config = config(by, window);
        for path in model.paths() {
            let expected = naive_confidence(&config, model.completion(path));
            prop_assert_eq!(confidence(&config, model.tree(), path), expected);
        }
    }

    #[test]
    fn the_lowest_confidence_is_that_of_all_the_path_has_had(
        model in model(9),
        window in 1u32..6,
    ) {
        let config = config(PruneBy::Logprob, window);
        for path in model.paths() {
            let whole = model.completion(path);
            let expected = (1..=whole.len())
                .filter_map(|len| naive_confidence(&config, &whole[..len]))
                .min_by(f32::total_cmp);
            prop_assert_eq!(lowest_confidence(&config, model.tree(), path), expected);
        }
    }

    #[test]
    fn the_threshold_does_not_depend_on_the_order_of_the_warm_up(
        lowest in prop::collection::vec(prop::option::of(-9.0f32..0.0), 1..12),
        quantile in 0.0f32..=1.0,
    ) {
        let config = warmup(lowest.len() as u32, quantile);
        let value = |lowest: &mut dyn Iterator<Item = &Option<f32>>| {
            let mut threshold = Threshold::new(&config);
            lowest.for_each(|&lowest| threshold.observe_lowest(lowest));
            threshold.value()
        };
        prop_assert_eq!(value(&mut lowest.iter()), value(&mut lowest.iter().rev()));
    }
}
