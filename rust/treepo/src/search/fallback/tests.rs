//! Tests of the module above.

use proptest::prelude::*;

use super::super::FallbackConfig;
use super::super::walk::fixture::{Flat, Model, model};
use super::*;

const ROOT: PathId = PathId(0);
const ROUNDS: u32 = 20_000;
const ALL_AT: [FallbackAt; 6] = [
    FallbackAt::Boundary,
    FallbackAt::Window,
    FallbackAt::LowestLogprob,
    FallbackAt::UnsureBlock,
    FallbackAt::SureBlock,
    FallbackAt::Prompt,
];
const ALL_FROM: [FallbackFrom; 4] =
    [FallbackFrom::Answered, FallbackFrom::All, FallbackFrom::Priority, FallbackFrom::Longest];

fn config(from: FallbackFrom, at: FallbackAt, alignment: Alignment) -> SearchConfig {
    SearchConfig {
        segment_len: 4,
        max_depth: 100,
        fallback: FallbackConfig { from, at, alignment, ..FallbackConfig::default() },
        ..SearchConfig::default()
    }
}

fn run(config: &SearchConfig, model: &Model, round: u32, missing: u32) -> Vec<Restart> {
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    restarts(config, model.tree(), round, missing, &mut scratch, &mut out);
    out
}

/// A finished path of `len` tokens in segments of four.
fn leaf(key: u64, logprobs: &[f32], reason: FinishReason) -> Model {
    let mut model = Model::new(key, &[1, 2, 3]);
    grow(&mut model, ROOT, logprobs, reason);
    model
}

fn grow(model: &mut Model, path: PathId, logprobs: &[f32], reason: FinishReason) {
    for (i, &logprob) in (1..).zip(logprobs) {
        model.push(path, 7, logprob, 1.0);
        if i % 4 == 0 {
            model.mark(path);
        }
    }
    model.mark(path);
    model.finish(path, reason);
}

/// A tree with a leaf of each of these lengths and reasons.
fn leaves(leaves: &[(usize, FinishReason)]) -> Model {
    let mut model = Model::new(5, &[1, 2, 3]);
    for _ in 1..leaves.len() {
        model.fork(ROOT, 3);
    }
    for (path, &(len, reason)) in (0..).map(PathId).zip(leaves) {
        grow(&mut model, path, &vec![-1.0; len], reason);
    }
    model
}

/// How often each completion length is the cut, over many rounds.
fn cuts(config: &SearchConfig, model: &Model) -> Vec<u32> {
    let mut counts = vec![0; completion_len(model.tree(), ROOT) as usize];
    for round in 0..ROUNDS {
        let restarts = run(config, model, round, 1);
        counts[(restarts[0].at - model.tree().prompt_len) as usize] += 1;
    }
    counts
}

fn assert_frequencies(counts: &[u32], expected: &[f64]) {
    assert_eq!(counts.len(), expected.len());
    for (i, (&count, &p)) in counts.iter().zip(expected).enumerate() {
        let found = f64::from(count) / f64::from(ROUNDS);
        let deviation = (p * (1.0 - p) / f64::from(ROUNDS)).sqrt();
        assert!((found - p).abs() <= 5.0 * deviation, "{i}: {found} is not {p}");
    }
}

/// The default rule, written down a second time.
fn default_restarts(config: &SearchConfig, tree: &Tree, round: u32, missing: u32) -> Vec<Restart> {
    let stream = tree.stream();
    let answered = |p: &PathId| {
        tree.own(*p).finish == Some(FinishReason::Stop) && completion_len(tree, *p) > 0
    };
    let paths = (0..tree.paths().len() as u32).map(PathId);
    let mut candidates: Vec<PathId> = paths.filter(answered).collect();
    for i in (1..candidates.len()).rev() {
        let counter = u64::from(round) << 32 | i as u64;
        let j = stream.below(Purpose::FallbackOrder, counter, i as u32 + 1);
        candidates.swap(i, j as usize);
    }
    let (mut missing, mut restarts) = (missing, Vec::new());
    for path in candidates {
        if missing == 0 {
            break;
        }
        let boundaries = tree.boundaries(path).unwrap();
        let counter = u64::from(round) << 32 | u64::from(path.0);
        let cut = stream.below(Purpose::FallbackCut, counter, boundaries.len() as u32);
        let copies = config.branch_factor.min(missing);
        missing -= copies;
        restarts.push(Restart { path, at: boundaries[cut as usize], copies });
    }
    if restarts.is_empty() {
        let copies = config.initial_divergence.min(missing);
        restarts.push(Restart { path: ROOT, at: tree.prompt_len, copies });
    }
    restarts
}

#[test]
fn nothing_missing_or_allowed_is_no_restart() {
    let model = leaf(0, &[-1.0; 9], FinishReason::Stop);
    let from = |from| config(from, FallbackAt::Boundary, Alignment::Segment);
    assert_eq!(run(&from(FallbackFrom::Nothing), &model, 1, 4), []);
    assert_eq!(run(&from(FallbackFrom::Answered), &model, 1, 0), []);
}

#[test]
fn without_a_candidate_the_tree_restarts_at_the_prompt() {
    let model = leaf(0, &[-1.0; 9], FinishReason::Length);
    let config = config(FallbackFrom::Answered, FallbackAt::Boundary, Alignment::Segment);
    let expected = |copies| [Restart { path: ROOT, at: 3, copies }];
    assert_eq!(run(&config, &model, 1, 7), expected(2));
    assert_eq!(run(&config, &model, 1, 1), expected(1));
}

#[test]
fn only_leaves_that_count_are_candidates() {
    use FinishReason::{Abort, Depth, Length, Pruned, Repetition, Stop};
    let model = leaves(&[Pruned, Stop, Abort, Length, Depth, Repetition].map(|reason| (5, reason)));
    for from in ALL_FROM {
        let config = config(from, FallbackAt::Boundary, Alignment::Segment);
        let mut paths: Vec<u32> =
            run(&config, &model, 1, 99).iter().map(|restart| restart.path.0).collect();
        paths.sort_unstable();
        let expected: &[u32] = if from == FallbackFrom::Answered { &[1] } else { &[1, 3, 4, 5] };
        assert_eq!(paths, expected, "{from:?}");
    }
}

#[test]
fn a_leaf_without_a_completion_is_no_candidate() {
    let mut model = Model::new(0, &[1, 2, 3]);
    model.finish(ROOT, FinishReason::Stop);
    for (from, at) in ALL_FROM.into_iter().flat_map(|from| ALL_AT.map(|at| (from, at))) {
        let restarts = run(&config(from, at, Alignment::Token), &model, 1, 1);
        assert_eq!(restarts, [Restart { path: ROOT, at: 3, copies: 1 }]);
    }
}

#[test]
fn copies_come_from_the_configuration_or_the_branch_factor() {
    let model = leaves(&[(5, FinishReason::Stop); 3]);
    let mut config = config(FallbackFrom::All, FallbackAt::Boundary, Alignment::Segment);
    config.branch_factor = 3;
    let copies = |config: &SearchConfig, missing| {
        run(config, &model, 1, missing).iter().map(|r| r.copies).collect::<Vec<_>>()
    };
    assert_eq!(copies(&config, 7), [3, 3, 1]);
    assert_eq!(copies(&config, 99), [3, 3, 3], "the rest waits for the next round");
    config.fallback.copies = Some(1);
    assert_eq!(copies(&config, 2), [1, 1]);
}

#[test]
fn windows_are_drawn_evenly_and_never_the_leaf_itself() {
    let mut config = config(FallbackFrom::All, FallbackAt::Window, Alignment::Token);
    config.fallback.window = Some(3);
    let third = 1.0 / 3.0;
    for len in [7, 8, 9] {
        let mut expected = vec![0.0; len];
        for at in [0, 3, 6] {
            expected[at] = third;
        }
        let model = leaf(1, &vec![-1.0; len], FinishReason::Stop);
        assert_frequencies(&cuts(&config, &model), &expected);
    }
    config.fallback.max_windows = Some(2);
    let model = leaf(1, &[-1.0; 8], FinishReason::Stop);
    let expected = [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.5, 0.0];
    assert_frequencies(&cuts(&config, &model), &expected);
}

#[test]
fn without_a_window_every_leaf_can_restart() {
    // F2: the published script's window of -1 fails at the first fallback
    for len in 1..20 {
        let model = leaf(len, &vec![-1.0; len as usize], FinishReason::Stop);
        for at in ALL_AT {
            for max_windows in [None, Some(0), Some(1), Some(99)] {
                let mut config = config(FallbackFrom::Answered, at, Alignment::Token);
                config.fallback.max_windows = max_windows;
                for round in 0..20 {
                    let cut = run(&config, &model, round, 1)[0].at - 3;
                    assert!(cut < len as u32, "{at:?} cuts {len} tokens at {cut}");
                    let by_window = at != FallbackAt::LowestLogprob;
                    assert!(cut.is_multiple_of(4) || !by_window, "segments are the windows");
                    assert!(len > 4 || cut == 0 || !by_window, "short leaves at the prompt");
                }
            }
        }
    }
}

#[test]
fn the_least_likely_token_is_sampled_again() {
    let config = config(FallbackFrom::All, FallbackAt::LowestLogprob, Alignment::Token);
    let at =
        |logprobs: &[f32]| run(&config, &leaf(0, logprobs, FinishReason::Stop), 1, 1)[0].at - 3;
    assert_eq!(at(&[-1.0, -5.0, -2.0]), 1);
    assert_eq!(at(&[-1.0, -5.0, -2.0, -5.0]), 1, "the earliest of equals");
    assert_eq!(at(&[-9.0, -5.0]), 0);
    assert_eq!(at(&[-1.0, -2.0, -3.0]), 2);
}

#[test]
fn given_tokens_have_no_part_in_log_probabilities() {
    let mut model = Model::new(0, &[1, 2, 3]);
    model.give(ROOT, &[8, 8, 8]);
    model.push(ROOT, 7, -1.0, 1.0);
    model.give(ROOT, &[8, 8]);
    model.push(ROOT, 7, -2.0, 1.0);
    model.give(ROOT, &[8, 8]);
    model.finish(ROOT, FinishReason::Stop);
    let mut config = config(FallbackFrom::All, FallbackAt::LowestLogprob, Alignment::Token);
    assert_eq!(run(&config, &model, 1, 1)[0].at, 3 + 6);
    config.fallback.window = Some(3);
    let odds = (-1.0f64).exp();
    let (low, high) = (odds / (1.0 + odds), 1.0 / (1.0 + odds));
    config.fallback.at = FallbackAt::UnsureBlock;
    let blocks = |a, b| [0.0, 0.0, 0.0, a, 0.0, 0.0, b, 0.0, 0.0];
    assert_frequencies(&cuts(&config, &model), &blocks(low, high));
    config.fallback.at = FallbackAt::SureBlock;
    assert_frequencies(&cuts(&config, &model), &blocks(high, low));
}

#[test]
fn a_completion_without_sampled_tokens_restarts_at_the_prompt() {
    let mut model = Model::new(0, &[1, 2, 3]);
    model.give(ROOT, &[8; 9]);
    model.finish(ROOT, FinishReason::Stop);
    for at in [FallbackAt::LowestLogprob, FallbackAt::UnsureBlock, FallbackAt::SureBlock] {
        let config = config(FallbackFrom::All, at, Alignment::Token);
        assert_eq!(run(&config, &model, 1, 1)[0].at, 3);
    }
}

#[test]
fn blocks_are_drawn_by_the_softmax_of_their_means() {
    let logprobs = [-1.0, -2.0, -0.5, -0.25, -3.0];
    let model = leaf(2, &logprobs, FinishReason::Stop);
    for (at, sign) in [(FallbackAt::UnsureBlock, -1.0), (FallbackAt::SureBlock, 1.0)] {
        let mut config = config(FallbackFrom::All, at, Alignment::Token);
        config.fallback.window = Some(2);
        let weights = [-1.5f64, -0.375, -3.0].map(|mean| (sign * mean).exp());
        let p = weights.map(|weight| weight / weights.iter().sum::<f64>());
        assert_frequencies(&cuts(&config, &model), &[p[0], 0.0, p[1], 0.0, p[2]]);
    }
}

#[test]
fn extreme_log_probabilities_leave_the_softmax_finite() {
    let model = leaf(2, &[0.0, f32::MIN, f32::MIN / 2.0, 0.0], FinishReason::Stop);
    for (at, expected) in [(FallbackAt::UnsureBlock, 1), (FallbackAt::SureBlock, 0)] {
        let mut config = config(FallbackFrom::All, at, Alignment::Token);
        config.fallback.window = Some(1);
        for round in 0..50 {
            let cut = run(&config, &model, round, 1)[0].at - 3;
            assert!(cut == expected || (expected == 0 && cut == 3), "{at:?}: {cut}");
        }
    }
}

#[test]
fn priorities_are_drawn_in_proportion_and_flawed_leaves_come_last() {
    // F8: the published finished_first_strict takes flawed leaves first
    use FinishReason::{Depth, Length, Repetition, Stop};
    let model = leaves(&[Repetition, Length, Depth, Stop].map(|reason| (5, reason)));
    let config = config(FallbackFrom::Priority, FallbackAt::Prompt, Alignment::Segment);
    let weights = [2.0, 3.0, 4.0, 5.0];
    let (mut first, mut pairs) = (vec![0; 4], vec![0; 16]);
    for round in 0..ROUNDS {
        let restarts = run(&config, &model, round, 99);
        assert_eq!(restarts.len(), 4);
        let [a, b] = [restarts[0].path.index(), restarts[1].path.index()];
        first[a] += 1;
        pairs[4 * a + b] += 1;
    }
    assert!(first.is_sorted(), "{first:?}");
    assert_frequencies(&first, &weights.map(|weight| weight / 14.0));
    let pair = |i: usize| match (weights[i / 4], weights[i % 4]) {
        _ if i / 4 == i % 4 => 0.0,
        (a, b) => a / 14.0 * b / (14.0 - a),
    };
    assert_frequencies(&pairs, &(0..16).map(pair).collect::<Vec<_>>());
}

#[test]
fn long_leaves_are_drawn_in_proportion_to_their_length() {
    let model = leaves(&[1, 9, 4, 6].map(|len| (len, FinishReason::Length)));
    let config = config(FallbackFrom::Longest, FallbackAt::Prompt, Alignment::Segment);
    let mut first = vec![0; 4];
    for round in 0..ROUNDS {
        first[run(&config, &model, round, 1)[0].path.index()] += 1;
    }
    assert_frequencies(&first, &[0.05, 0.45, 0.2, 0.3]);
}

#[test]
fn equal_weights_are_no_tie_and_every_order_is_drawn() {
    // F8: the published permutation fails on equal scores
    let model = leaves(&[(5, FinishReason::Stop); 3]);
    for from in ALL_FROM {
        let config = config(from, FallbackAt::Prompt, Alignment::Segment);
        let mut orders = vec![0; 27];
        for round in 0..ROUNDS {
            let order = run(&config, &model, round, 99);
            orders[order.iter().fold(0, |sum, restart| sum * 3 + restart.path.index())] += 1;
        }
        orders.retain(|&count| count > 0);
        assert_frequencies(&orders, &[1.0 / 6.0; 6]);
    }
}

#[test]
fn a_cut_that_leaves_no_segment_moves_down() {
    let model = leaf(0, &[-1.0; 20], FinishReason::Stop);
    for (max_depth, at) in (1..7).flat_map(|depth| ALL_AT.map(|at| (depth, at))) {
        for alignment in [Alignment::Segment, Alignment::Token] {
            let mut config = config(FallbackFrom::All, at, alignment);
            config.max_depth = max_depth;
            config.fallback.window = Some(3);
            for round in 0..50 {
                let cut = run(&config, &model, round, 1)[0].at - 3;
                assert!(cut / 4 < max_depth, "{cut} of depth {max_depth}");
            }
        }
    }
}

fn any_config() -> impl Strategy<Value = SearchConfig> {
    let rules = (
        prop::sample::select(ALL_FROM.to_vec()),
        prop::sample::select(ALL_AT.to_vec()),
        prop::sample::select(vec![Alignment::Segment, Alignment::Token]),
    );
    let numbers =
        (prop::option::of(0u32..5), prop::option::of(0u32..4), prop::option::of(0u32..4), 1u32..5);
    (rules, numbers, 1u32..4).prop_map(|((from, at, alignment), numbers, factor)| {
        let mut config = config(from, at, alignment);
        (config.fallback.window, config.fallback.max_windows) = (numbers.0, numbers.1);
        (config.fallback.copies, config.max_depth) = (numbers.2, numbers.3);
        config.branch_factor = factor;
        config
    })
}

/// The cuts that a rule may draw, as completion lengths, before alignment and depth.
fn naive_cuts(config: &SearchConfig, completion: &[Flat]) -> Vec<usize> {
    let window = config.fallback.window.unwrap_or(config.segment_len).max(1) as usize;
    let num_windows = completion.len().div_ceil(window);
    let has_sampled = |i: &usize| {
        let end = completion.len().min((i + 1) * window);
        completion[i * window..end].iter().any(|token| token.sampled.is_some())
    };
    match config.fallback.at {
        FallbackAt::Boundary => (0..completion.len()).collect(),
        FallbackAt::Window => {
            let back = config.fallback.max_windows.unwrap_or(u32::MAX).max(1) as usize;
            let first = num_windows.saturating_sub(back);
            (first..num_windows).map(|i| i * window).collect()
        }
        FallbackAt::LowestLogprob => {
            let mut lowest = (f32::INFINITY, 0);
            for (i, token) in completion.iter().enumerate() {
                if let Some((logprob, _)) = token.sampled
                    && logprob < lowest.0
                {
                    lowest = (logprob, i);
                }
            }
            vec![lowest.1]
        }
        FallbackAt::UnsureBlock | FallbackAt::SureBlock => {
            let blocks: Vec<usize> = (0..num_windows).filter(has_sampled).collect();
            if blocks.is_empty() { vec![0] } else { blocks.iter().map(|i| i * window).collect() }
        }
        FallbackAt::Prompt => vec![0],
    }
}

proptest! {
    #[test]
    fn the_default_is_the_rule_of_the_paper(
        model in model(9),
        round in 0u32..50,
        missing in 1u32..12,
    ) {
        let config = SearchConfig::default();
        let found = run(&config, &model, round, missing);
        prop_assert_eq!(found, default_restarts(&config, model.tree(), round, missing));
    }

    #[test]
    fn every_restart_is_a_cut_of_its_rule(
        model in model(9),
        config in any_config(),
        round in 0u32..50,
        missing in 1u32..12,
    ) {
        let tree = model.tree();
        let max_depth = config.max_depth as usize;
        for restart in run(&config, &model, round, missing) {
            let path = restart.path;
            if tree.own(path).finish.is_none() || completion_len(tree, path) == 0 {
                prop_assert_eq!((path, restart.at), (ROOT, tree.prompt_len));
                continue;
            }
            let boundaries = tree.boundaries(path).unwrap();
            prop_assert!(tree.prompt_len <= restart.at && restart.at < tree.own(path).len());
            let is_boundary = boundaries.contains(&restart.at);
            let may_be_off = config.fallback.alignment == Alignment::Token
                && config.fallback.at != FallbackAt::Boundary;
            prop_assert!(is_boundary || may_be_off);
            let placed = |cut: usize| {
                let cut = cut as u32 + tree.prompt_len;
                let below = boundaries.iter().filter(|&&boundary| boundary <= cut).count();
                if below > max_depth {
                    boundaries[max_depth - 1]
                } else if may_be_off {
                    cut
                } else {
                    boundaries[below - 1]
                }
            };
            let allowed = naive_cuts(&config, model.completion(path));
            let is_flawed = restart.path == ROOT && restart.at == tree.prompt_len;
            prop_assert!(is_flawed || allowed.into_iter().any(|cut| placed(cut) == restart.at));
        }
    }

    #[test]
    fn paths_are_unique_and_copies_fill_what_is_missing(
        model in model(9),
        config in any_config(),
        missing in 1u32..12,
    ) {
        let restarts = run(&config, &model, 3, missing);
        let each = config.fallback.copies.unwrap_or(config.branch_factor).max(1);
        let total: u32 = restarts.iter().map(|restart| restart.copies).sum();
        let all = run(&config, &model, 3, u32::MAX);
        prop_assert!(total >= 1 && total <= missing);
        prop_assert!(total == missing || restarts.len() == all.len());
        prop_assert!(restarts.iter().all(|r| r.copies >= 1 && r.copies <= each.max(2)));
        let mut paths: Vec<PathId> = restarts.iter().map(|restart| restart.path).collect();
        paths.sort_unstable();
        paths.dedup();
        prop_assert_eq!(paths.len(), restarts.len());
    }

    #[test]
    fn a_restart_does_not_depend_on_how_many_others_are_made(
        model in model(9),
        config in any_config(),
        round in 0u32..50,
        missing in 1u32..12,
    ) {
        let all = run(&config, &model, round, u32::MAX);
        for (some, all) in run(&config, &model, round, missing).iter().zip(&all) {
            prop_assert_eq!((some.path, some.at), (all.path, all.at));
        }
    }

    #[test]
    fn used_buffers_change_nothing(
        models in prop::collection::vec(model(9), 1..4),
        config in any_config(),
    ) {
        let (mut scratch, mut out) = (Scratch::default(), Vec::new());
        for model in &models {
            restarts(&config, model.tree(), 2, 9, &mut scratch, &mut out);
            prop_assert_eq!(&out, &run(&config, model, 2, 9));
        }
    }
}
