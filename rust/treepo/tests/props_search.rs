//! The search under every rule of its configuration, over a model that is a hash of the path's
//! random numbers, with segments run in any order. Laws are checked after every call.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use proptest::sample::select;
use treepo::search::{
    Alignment, Boxed, BranchBy, BranchConfig, BudgetConfig, Dependence, FallbackAt, FallbackConfig,
    Opportunistic, Prefer, PruneBy, PruneConfig, PrunedLeaves, Refill, Remainder, Repetition,
    StopConfig, TemperatureSchedule, TokenTexts, Total, Transfer, Verdict, Verdicts,
};
use treepo::{
    Error, FallbackFrom, FinishReason, Forest, PathId, Purpose, SampledToken, Search, SearchConfig,
    TreeId,
};

const EOS: u32 = 0;
const TEXTS: [&str; 7] = ["", "a", "b", "stop", "\\boxed{", "}", "ab"];

/// A stream of choices that no rule sees.
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        ((self.0 >> 33) % n as u64) as usize
    }
}

/// The next token of a path: a function of the path's stream and its length alone.
fn next_token(search: &Search, tree: TreeId, path: PathId) -> SampledToken {
    let own = search.forest().path(tree, path).unwrap();
    let bits = own.stream.bits(Purpose::Token, u64::from(own.len()));
    let unit = |bits: u64| (bits % 1009) as f32 / 1009.0;
    let id = if bits.is_multiple_of(9) { EOS } else { 1 + (bits >> 8) as u32 % 6 };
    SampledToken { id, logprob: -4.0 * unit(bits >> 20), entropy: 2.0 * unit(bits >> 40) }
}

fn verdict(search: &Search, tree: TreeId, path: PathId) -> Verdict {
    let own = search.forest().path(tree, path).unwrap();
    let bits = own.stream.bits(Purpose::Token, u64::from(own.len()) + (1 << 40));
    match bits % 12 {
        0 => Verdict::Stop,
        1 => Verdict::Prune,
        _ => Verdict::Continue { score: (bits >> 8) as f32 % 64.0 },
    }
}

/// One token or one verdict somewhere; whether there was anything to do.
fn advance(search: &mut Search, choices: &mut Choices) -> bool {
    let pending: Vec<_> = search.ended_segments().collect();
    let segments = search.segments();
    let all = pending.len() + segments.len();
    if all == 0 {
        return false;
    }
    let choice = choices.below(all);
    if let Some(&(tree, path)) = pending.get(choice) {
        let verdict = verdict(search, tree, path);
        search.report(tree, path, verdict).unwrap();
    } else {
        let segment = segments[choice - pending.len()];
        let token = next_token(search, segment.tree, segment.path);
        search.push_token(segment.tree, segment.path, token).unwrap();
    }
    true
}

fn new_search(config: &SearchConfig, keys: &[u64]) -> Search {
    let mut search = Search::new(config.clone(), 3).unwrap();
    search.set_texts(TokenTexts::new(TEXTS)).unwrap();
    for &key in keys {
        search.add_tree(key, &[1, 2]).unwrap();
    }
    search.check().unwrap();
    search
}

fn finish(search: &mut Search, choices: &mut Choices) {
    let mut num_calls = 0;
    while advance(search, choices) {
        search.check().unwrap();
        num_calls += 1;
        assert!(num_calls < 20_000, "S1: no end");
    }
    assert!(search.is_done());
}

fn grow(config: &SearchConfig, keys: &[u64], order: u64) -> Forest {
    let mut search = new_search(config, keys);
    finish(&mut search, &mut Choices(order));
    search.into_forest()
}

fn branch() -> impl Strategy<Value = BranchConfig> {
    use BranchBy::{
        Even, MeanLogprob, PathLogprob, Score, SegmentEntropy, SegmentLogprob, TokenEntropy,
        TokenEntropyAbove, TokenSurprisal,
    };
    let by = select(vec![
        Even,
        PathLogprob,
        MeanLogprob,
        SegmentLogprob,
        SegmentEntropy,
        Score,
        TokenSurprisal,
        TokenEntropy,
        TokenEntropyAbove,
    ]);
    let ends = (
        select(vec![Prefer::Low, Prefer::High]),
        select(vec![Remainder::Drawn, Remainder::Last]),
        select(vec![
            TemperatureSchedule::Constant,
            TemperatureSchedule::Linear,
            TemperatureSchedule::Sinusoid,
        ]),
    );
    (by, ends, 0.1f32..3.0, 1u32..4, 1u32..3).prop_map(
        |(by, ends, temperature, positions, copies)| {
            let (prefer, remainder, schedule) = ends;
            let num_positions = positions;
            let threshold = temperature;
            let (final_temperature, by) = (0.5, by);
            BranchConfig {
                by,
                prefer,
                temperature,
                final_temperature,
                schedule,
                remainder,
                num_positions,
                copies,
                threshold,
            }
        },
    )
}

fn fallback() -> impl Strategy<Value = FallbackConfig> {
    use FallbackAt::{Boundary, LowestLogprob, Prompt, SureBlock, UnsureBlock, Window};
    use FallbackFrom::{All, Answered, Longest, Nothing, Priority};
    let from = select(vec![Nothing, Answered, All, Priority, Longest]);
    let at = select(vec![Boundary, Window, LowestLogprob, UnsureBlock, SureBlock, Prompt]);
    let number = || prop::option::of(1u32..5);
    let alignment = select(vec![Alignment::Segment, Alignment::Token]);
    let refill = select(vec![Refill::Late, Refill::Early]);
    ((from, at, alignment, refill), (number(), number(), number())).prop_map(|(rules, numbers)| {
        let (from, at, alignment, refill) = rules;
        let (window, max_windows, copies) = numbers;
        FallbackConfig { from, at, window, max_windows, alignment, refill, copies }
    })
}

fn budget() -> impl Strategy<Value = BudgetConfig> {
    let transfer = select(vec![Transfer::On, Transfer::Off]);
    let totals = vec![Total::Trajectories, Total::UniqueTokens, Total::PublishedTokens];
    (transfer, select(totals), 6u32..80, 1u32..4).prop_map(
        |(transfer, total, max_tokens, min_width)| BudgetConfig {
            transfer,
            total,
            max_tokens,
            min_width,
        },
    )
}

fn stop() -> impl Strategy<Value = StopConfig> {
    let repetition = vec![Repetition::Ignored, Repetition::Tokens, Repetition::Bytes];
    let strings = prop::option::weighted(0.3, select(vec!["stop", "bab", "aa"]));
    let boxed = select(vec![Boxed::Ignored, Boxed::Stops]);
    (strings, boxed, select(repetition), 1u32..3, 2u32..4).prop_map(
        |(string, boxed, repetition, repetition_len, repetition_count)| StopConfig {
            strings: string.into_iter().map(String::from).collect(),
            boxed,
            repetition,
            repetition_len,
            repetition_count,
            repetition_window: 8,
        },
    )
}

fn prune() -> impl Strategy<Value = PruneConfig> {
    let by = vec![
        PruneBy::Nothing,
        PruneBy::Nothing,
        PruneBy::Logprob,
        PruneBy::Entropy,
        PruneBy::Score,
    ];
    let leaves = vec![PrunedLeaves::Count, PrunedLeaves::AreReplaced];
    (select(by), 1u32..5, 0.1f32..0.9, 0u32..4, select(leaves)).prop_map(
        |(by, window, level, warmup_leaves, leaves)| PruneConfig {
            by,
            window,
            threshold: match by {
                PruneBy::Logprob => -4.0 * level,
                PruneBy::Entropy => -2.0 * level,
                _ => 32.0 * level,
            },
            warmup_leaves,
            warmup_quantile: level,
            leaves,
        },
    )
}

fn config() -> impl Strategy<Value = SearchConfig> {
    let sizes = (1u32..9, 1u32..6, 1u32..5, 1u32..4, 1u32..4);
    let drawn = (prop::option::of(0u32..3), prop::option::of(0u32..3), prop::option::of(1u32..15));
    let across = (any::<bool>(), prop::bool::weighted(0.2), 6u32..60, 0.0f32..1.0);
    let rules = (branch(), budget(), fallback(), stop(), prune());
    (sizes, drawn, across, rules).prop_map(|(sizes, drawn, across, rules)| {
        let (width, segment_len, max_depth, branch_factor, initial_divergence) = sizes;
        let (more_factor, more_initial, max_completion_len) = drawn;
        let (judged, opportunistic, step_tokens, progress) = across;
        let (branch, budget, fallback, stop, prune) = rules;
        let by_score = branch.by == BranchBy::Score || prune.by == PruneBy::Score;
        SearchConfig {
            width,
            segment_len,
            max_depth,
            branch_factor,
            max_branch_factor: more_factor.map(|more| branch_factor + more),
            initial_divergence,
            max_initial_divergence: more_initial.map(|more| initial_divergence + more),
            branch,
            budget,
            fallback,
            stop,
            prune,
            verdicts: if judged || by_score { Verdicts::Segments } else { Verdicts::Nothing },
            opportunistic: if opportunistic {
                Opportunistic::StepTokens
            } else {
                Opportunistic::Off
            },
            step_tokens,
            progress,
            max_completion_len,
            eos_token_ids: vec![EOS],
            ..SearchConfig::default()
        }
    })
}

fn num_counted(forest: &Forest, tree: usize) -> u32 {
    let paths = forest.trees()[tree].paths();
    paths.iter().filter(|path| path.finish.is_some_and(FinishReason::counts)).count() as u32
}

proptest! {
    #[test]
    fn every_tree_ends_within_its_width_and_no_schedule_changes_it(
        config in config(),
        orders in any::<(u64, u64)>(),
    ) {
        let forest = grow(&config, &[7, 8, 9], orders.0);
        for (t, tree) in forest.trees().iter().enumerate() {
            let counted = num_counted(&forest, t);
            let pruned = tree.paths().iter().filter(|p| p.finish == Some(FinishReason::Pruned));
            let num_pruned = pruned.count() as u32;
            prop_assert!(counted <= config.width);
            prop_assert!(tree.paths().iter().all(|path| path.finish.is_some()));
            let is_limited = config.budget.total != Total::Trajectories;
            if config.fallback.from != FallbackFrom::Nothing && !is_limited {
                let replaced = config.prune.leaves == PrunedLeaves::AreReplaced;
                let free = if replaced { config.width - 1 } else { 0 };
                prop_assert_eq!(counted + num_pruned.saturating_sub(free), config.width);
            }
            let is_replayable = config.opportunistic == Opportunistic::Off;
            prop_assert_eq!(tree.is_replayable, is_replayable);
        }
        if config.opportunistic == Opportunistic::Off {
            let columns = format!("{:?}", forest.columns());
            prop_assert_eq!(columns, format!("{:?}", grow(&config, &[7, 8, 9], orders.1).columns()));
            let alone = grow(&config, &[8], orders.1);
            let other = forest.select(&[TreeId(1)]).unwrap();
            prop_assert_eq!(format!("{:?}", alone.columns()), format!("{:?}", other.columns()));
        }
    }

    #[test]
    fn the_weights_of_a_tree_add_up_to_its_paths(config in config(), order in any::<u64>()) {
        let forest = grow(&config, &[7, 8], order);
        for tree in forest.trees() {
            let sum: f64 = tree.paths().iter().map(|path| f64::from(path.weight)).sum();
            let num_paths = tree.paths().len() as f64;
            prop_assert!((sum - num_paths).abs() < 1e-4 * num_paths, "{} of {}", sum, num_paths);
            prop_assert!(tree.paths().iter().all(|path| path.weight > 0.0));
        }
    }

    #[test]
    fn a_token_total_is_overrun_by_the_live_paths_at_most(config in config(), order in any::<u64>()) {
        let mut config = config;
        config.budget.total = Total::UniqueTokens;
        config.budget.min_width = 1;
        config.opportunistic = Opportunistic::Off;
        let forest = grow(&config, &[7, 8], order);
        for tree in forest.trees() {
            let sampled = tree.paths().iter().map(|path| path.len() - path.at).sum::<u32>() - 2;
            let longest = config.max_completion_len();
            // a fork is paid for one segment; paths that go on beyond it are not given up
            let bound = config.budget.max_tokens + config.width * longest;
            prop_assert!(sampled <= bound, "{} tokens", sampled);
            // min_width makes one leaf in any case, also in the place of one that was pruned
            if config.max_depth == 1 && config.prune.by == PruneBy::Nothing {
                prop_assert!(sampled <= config.budget.max_tokens.max(longest), "{} tokens", sampled);
            }
        }
    }

    #[test]
    fn rules_that_depend_on_the_prefix_are_the_forks_at_ends(config in config()) {
        let is_prefix = config.dependence() == Dependence::Prefix;
        let looks_back = config.fallback.from != FallbackFrom::Nothing
            || config.prune.by != PruneBy::Nothing
            || config.verdicts == Verdicts::Segments
            || matches!(
                config.branch.by,
                BranchBy::TokenSurprisal | BranchBy::TokenEntropy | BranchBy::TokenEntropyAbove
            );
        prop_assert_eq!(is_prefix, !looks_back);
        let worst = config.policies().iter().map(|policy| policy.dependence).max();
        prop_assert_eq!(worst.unwrap_or(Dependence::Prefix), config.dependence());
    }
}

/// A call of the embedding program, with ids that may not exist.
#[derive(Debug, Clone)]
enum Op {
    Advance(u32),
    Fork(u32, u32, u32),
    Prune(u32, u32),
    PruneSubtree(u32, u32, u32),
    Rewind(u32, u32, u32),
    Report(u32, u32, u32),
    Push(u32, u32),
    Complete(u32, u32, u32),
    Abort(u32),
    AddTree,
}

fn op() -> impl Strategy<Value = Op> {
    let (tree, path, at) = (|| 0u32..4, || 0u32..12, || 0u32..20);
    prop_oneof![
        12 => (1u32..8).prop_map(Op::Advance),
        3 => (tree(), path(), at()).prop_map(|(t, p, at)| Op::Fork(t, p, at)),
        2 => (tree(), path()).prop_map(|(t, p)| Op::Prune(t, p)),
        1 => (tree(), path(), at()).prop_map(|(t, p, at)| Op::PruneSubtree(t, p, at)),
        3 => (tree(), path(), at()).prop_map(|(t, p, at)| Op::Rewind(t, p, at)),
        2 => (tree(), path(), 0u32..5).prop_map(|(t, p, kind)| Op::Report(t, p, kind)),
        1 => (tree(), path()).prop_map(|(t, p)| Op::Push(t, p)),
        1 => (tree(), path(), 0u32..6).prop_map(|(t, p, n)| Op::Complete(t, p, n)),
        1 => tree().prop_map(Op::Abort),
        1 => Just(Op::AddTree),
    ]
}

fn apply(search: &mut Search, op: &Op, choices: &mut Choices) -> Result<(), Error> {
    let token = |id| SampledToken { id, logprob: -1.0, entropy: 1.0 };
    match *op {
        Op::Advance(count) => {
            for _ in 0..count {
                advance(search, choices);
            }
            Ok(())
        }
        Op::Fork(t, p, at) => search.fork(TreeId(t), PathId(p), at).map(drop),
        Op::Prune(t, p) => search.prune(TreeId(t), PathId(p)),
        Op::PruneSubtree(t, p, at) => search.prune_subtree(TreeId(t), PathId(p), at).map(drop),
        Op::Rewind(t, p, at) => search.rewind(TreeId(t), PathId(p), at).map(drop),
        Op::Report(t, p, kind) => {
            let verdict = match kind {
                0 => Verdict::Stop,
                1 => Verdict::Prune,
                2 => Verdict::Continue { score: f32::NAN },
                _ => Verdict::Continue { score: kind as f32 },
            };
            search.report(TreeId(t), PathId(p), verdict)
        }
        Op::Push(t, p) => search.push_token(TreeId(t), PathId(p), token(3)),
        Op::Complete(t, p, n) => {
            let tokens: Vec<_> = (0..n).map(|i| token(1 + i % 6)).collect();
            search.complete_segment(TreeId(t), PathId(p), &tokens)
        }
        Op::Abort(t) => search.abort_tree(TreeId(t)),
        Op::AddTree => search.add_tree(50, &[1, 2]).map(drop),
    }
}

proptest! {
    #[test]
    fn the_laws_hold_for_calls_of_the_embedding_program_in_any_order(
        config in config(),
        ops in prop::collection::vec(op(), 0..60),
        order in any::<u64>(),
    ) {
        let mut search = new_search(&config, &[7, 8]);
        let mut choices = Choices(order);
        for op in &ops {
            let before = format!("{search:?}");
            search.is_tree_done(TreeId(9));
            if apply(&mut search, op, &mut choices).is_err() {
                prop_assert_eq!(before, format!("{search:?}"), "{:?} failed and changed something", op);
            }
            search.check().unwrap();
        }
        finish(&mut search, &mut choices);
        for tree in search.forest().trees() {
            let sum: f64 = tree.paths().iter().map(|path| f64::from(path.weight)).sum();
            let num_paths = tree.paths().len() as f64;
            prop_assert!((sum - num_paths).abs() < 1e-4 * num_paths);
        }
    }
}

/// Expected completion length of the hash model, which ends with probability 1/9 a token.
fn expected_length(max_len: u32) -> f64 {
    (0..max_len).map(|i| (8.0f64 / 9.0).powi(i as i32)).sum()
}

/// Mean over many trees of the weighted and of the plain mean length, with the standard error of
/// the first.
fn mean_lengths(config: &SearchConfig, num_trees: u64) -> (f64, f64, f64) {
    let keys: Vec<u64> = (0..num_trees).collect();
    let mut search = new_search(config, &keys);
    while let Some(segment) = search.segments().first().copied() {
        let mut tokens = 0;
        while tokens < segment.max_new_tokens {
            let token = next_token(&search, segment.tree, segment.path);
            search.push_token(segment.tree, segment.path, token).unwrap();
            tokens = if token.id == EOS { segment.max_new_tokens } else { tokens + 1 };
        }
    }
    let of_tree = |tree: &treepo::Tree| {
        let lengths = || tree.paths().iter().map(|path| f64::from(path.len() - tree.prompt_len));
        let num_paths = tree.paths().len() as f64;
        let weights = tree.paths().iter().map(|path| f64::from(path.weight));
        let weighted: f64 = weights.zip(lengths()).map(|(weight, len)| weight * len).sum();
        (weighted / num_paths, lengths().sum::<f64>() / num_paths)
    };
    let means: Vec<_> = search.forest().trees().iter().map(of_tree).collect();
    let n = means.len() as f64;
    let weighted = means.iter().map(|mean| mean.0).sum::<f64>() / n;
    let plain = means.iter().map(|mean| mean.1).sum::<f64>() / n;
    let variance = means.iter().map(|mean| (mean.0 - weighted).powi(2)).sum::<f64>() / (n - 1.0);
    (weighted, plain, (variance / n).sqrt())
}

#[test]
fn weights_make_forks_at_the_ends_of_paths_unbiased() {
    use BranchBy::{Even, SegmentEntropy, SegmentLogprob};
    for by in [Even, SegmentEntropy, SegmentLogprob] {
        let mut config = SearchConfig {
            width: 8,
            segment_len: 3,
            max_depth: 5,
            eos_token_ids: vec![EOS],
            ..SearchConfig::default()
        };
        config.fallback.from = FallbackFrom::Nothing;
        config.branch.by = by;
        assert_eq!(config.dependence(), Dependence::Prefix);
        let (weighted, plain, error) = mean_lengths(&config, 1500);
        let expected = expected_length(15);
        assert!((weighted - expected).abs() < 4.0 * error, "{by:?}: {weighted}, not {expected}");
        assert!(plain - expected > 8.0 * error, "{by:?}: the plain mean {plain} is biased");
    }
}
