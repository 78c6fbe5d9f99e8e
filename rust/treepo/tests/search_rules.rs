//! What each rule of the search does, on trees small enough to follow by hand.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::search::{
    BranchBy, Event, FallbackFrom, Opportunistic, Prefer, Preset, PruneBy, PrunedLeaves, Refill,
    TokenTexts, Total, Transfer, Verdict, Verdicts,
};
use treepo::{
    FinishReason, ForkOrigin, PathId, SampledToken, Search, SearchConfig, Segment, Tree, TreeId,
};

const EOS: u32 = 9;
const TREE: TreeId = TreeId(0);

fn token(id: u32, logprob: f32, entropy: f32) -> SampledToken {
    SampledToken { id, logprob, entropy }
}

fn small() -> SearchConfig {
    let mut config = SearchConfig {
        width: 4,
        segment_len: 3,
        max_depth: 3,
        eos_token_ids: vec![EOS],
        ..SearchConfig::default()
    };
    config.fallback.from = FallbackFrom::Nothing;
    config
}

fn search(config: &SearchConfig) -> Search {
    let mut search = Search::new(config.clone(), 0).unwrap();
    search.add_tree(1, &[5, 5]).unwrap();
    search
}

fn tree(search: &Search) -> &Tree {
    search.forest().tree(TREE).unwrap()
}

/// (parent, at) of every path.
fn forks(search: &Search) -> Vec<(Option<u32>, u32)> {
    tree(search).paths().iter().map(|path| (path.parent().map(|id| id.0), path.at)).collect()
}

fn reasons(search: &Search) -> Vec<Option<FinishReason>> {
    tree(search).paths().iter().map(|path| path.finish).collect()
}

/// Runs a path's segment to its end with ordinary tokens.
fn run(search: &mut Search, path: u32) {
    let is_own = |segment: &Segment| segment.path == PathId(path);
    let segment = search.segments().into_iter().find(is_own).unwrap();
    let tokens = vec![token(1, -1.0, 1.0); segment.max_new_tokens as usize];
    search.complete_segment(TREE, PathId(path), &tokens).unwrap();
}

fn stop(search: &mut Search, path: u32) {
    search.push_token(TREE, PathId(path), token(EOS, -1.0, 1.0)).unwrap();
}

fn finish(search: &mut Search) {
    while let Some(segment) = search.segments().first().copied() {
        run(search, segment.path.0);
        search.check().unwrap();
    }
    assert!(search.is_done());
}

#[test]
fn eptree_forks_the_most_surprising_tokens_of_full_chains() {
    let mut config = Preset::Treerl.config();
    config.segment_len = 10;
    let mut search = search(&config);
    for path in 0..6 {
        for i in 0..10u8 {
            let logprob = if i == 4 || i == 7 { -f32::from(i) } else { -1.0 };
            search.push_token(TREE, PathId(path), token(1, logprob, 0.0)).unwrap();
        }
    }
    let mut expected: Vec<_> = [Some(0); 6].map(|parent| (parent, 2)).to_vec();
    expected[0] = (None, 0);
    for at in [2 + 7, 2 + 4] {
        expected.extend((0..6).flat_map(|path| [(Some(path), at); 2]));
    }
    assert_eq!(forks(&search), expected);
    finish(&mut search);
    assert_eq!(tree(&search).paths().len(), 30);
}

#[test]
fn forks_at_tokens_leave_live_paths_alone_and_keep_segments_aligned() {
    let mut config = SearchConfig { initial_divergence: 1, ..small() };
    config.branch.by = BranchBy::TokenEntropy;
    config.branch.num_positions = 1;
    let mut search = search(&config);
    for entropy in [0.1, 2.0, 0.5] {
        search.push_token(TREE, PathId(0), token(1, -1.0, entropy)).unwrap();
    }
    assert_eq!(forks(&search), [(None, 0), (Some(0), 3)]);
    let lengths: Vec<_> = search.segments().iter().map(|s| s.max_new_tokens).collect();
    assert_eq!(lengths, [3, 2], "the fork ends the segment that it was forked in");
    assert_eq!(tree(&search).path(PathId(1)).unwrap().origin, ForkOrigin::Branch);
    finish(&mut search);
    assert_eq!(tree(&search).paths().len(), 4);
}

#[test]
fn a_finished_path_is_forked_at_its_tokens_too() {
    let mut config = SearchConfig { initial_divergence: 1, width: 2, ..small() };
    config.branch.by = BranchBy::TokenSurprisal;
    let mut search = search(&config);
    search.push_token(TREE, PathId(0), token(1, -1.0, 1.0)).unwrap();
    search.push_token(TREE, PathId(0), token(EOS, -3.0, 1.0)).unwrap();
    assert_eq!(forks(&search), [(None, 0), (Some(0), 3)], "the end of sequence is sampled anew");
}

#[test]
fn early_refill_starts_missing_leaves_beside_live_paths() {
    let mut config = SearchConfig { branch_factor: 1, ..small() };
    config.budget.transfer = Transfer::Off;
    config.fallback.from = FallbackFrom::Answered;
    let second_round = |config: &SearchConfig| {
        let mut search = search(config);
        stop(&mut search, 0);
        run(&mut search, 1);
        let origins: Vec<_> = tree(&search).paths()[2..].iter().map(|path| path.origin).collect();
        finish(&mut search);
        (origins, tree(&search).paths().len())
    };
    assert_eq!(second_round(&config), (vec![], 4));
    config.fallback.refill = Refill::Early;
    // of three missing leaves the live path becomes one; the only answer gives one copy a round
    assert_eq!(second_round(&config), (vec![ForkOrigin::Fallback], 4));
    config.fallback.copies = Some(5);
    assert_eq!(second_round(&config), (vec![ForkOrigin::Fallback; 2], 4));
    config.branch_factor = 2; // 2^(3 - 1) leaves can still come of the live path
    assert_eq!(second_round(&config), (vec![ForkOrigin::Branch], 4));
}

#[test]
fn a_path_of_low_confidence_is_pruned_and_counts() {
    let mut config = small();
    config.prune.by = PruneBy::Logprob;
    (config.prune.window, config.prune.threshold) = (2, -1.5);
    let mut search = search(&config);
    search.drain_events();
    for logprob in [-1.0, -2.1] {
        search.push_token(TREE, PathId(0), token(1, logprob, 1.0)).unwrap();
    }
    let events: Vec<_> = search.drain_events().collect();
    assert_eq!(events, [Event::Pruned(TREE, PathId(0))]);
    finish(&mut search);
    assert_eq!(reasons(&search).iter().filter(|r| **r == Some(FinishReason::Pruned)).count(), 1);
    assert_eq!(tree(&search).paths().len(), 4);
}

#[test]
fn pruned_leaves_are_replaced_until_the_width_is_used_up() {
    let mut config = small();
    config.fallback.from = FallbackFrom::Answered;
    config.prune.by = PruneBy::Entropy;
    (config.prune.window, config.prune.threshold) = (1, -1.5);
    config.prune.leaves = PrunedLeaves::AreReplaced;
    let mut search = search(&config);
    // every path is pruned at its first token: three are replaced, four count
    while let Some(segment) = search.segments().first().copied() {
        search.push_token(TREE, segment.path, token(1, -1.0, 2.0)).unwrap();
        search.check().unwrap();
    }
    assert_eq!(reasons(&search), [Some(FinishReason::Pruned); 7]);
}

#[test]
fn a_warm_up_threshold_holds_from_the_round_after_its_leaves() {
    let mut config = SearchConfig { initial_divergence: 2, width: 4, ..small() };
    config.prune.by = PruneBy::Logprob;
    (config.prune.window, config.prune.warmup_leaves) = (1, 1);
    let mut search = search(&config);
    for logprob in [-1.0, -2.0] {
        search.push_token(TREE, PathId(0), token(1, logprob, 1.0)).unwrap();
    }
    stop(&mut search, 0);
    for logprob in [-9.0, -9.0, -9.0] {
        search.push_token(TREE, PathId(1), token(1, logprob, 1.0)).unwrap();
    }
    assert_eq!(reasons(&search)[1], None, "the round is not over when path 0 is");
    search.push_token(TREE, PathId(1), token(1, -2.0, 1.0)).unwrap();
    assert_eq!(reasons(&search)[1], None, "as sure as the leaf was");
    search.push_token(TREE, PathId(1), token(1, -2.1, 1.0)).unwrap();
    assert_eq!(reasons(&search)[1], Some(FinishReason::Pruned));
}

#[test]
fn the_first_leaves_of_a_warm_up_are_those_of_the_oldest_paths() {
    let mut config = SearchConfig { initial_divergence: 3, branch_factor: 1, ..small() };
    config.prune.by = PruneBy::Logprob;
    (config.prune.window, config.prune.warmup_leaves) = (1, 1);
    let mut search = search(&config);
    for (path, logprob) in [(1, -5.0), (0, -1.5)] {
        search.push_token(TREE, PathId(path), token(EOS, logprob, 1.0)).unwrap();
    }
    run(&mut search, 2);
    assert_eq!(reasons(&search)[2], None);
    search.push_token(TREE, PathId(2), token(1, -2.0, 1.0)).unwrap();
    assert_eq!(reasons(&search)[2], Some(FinishReason::Pruned), "below what path 0 had");
}

#[test]
fn a_round_waits_for_all_verdicts_and_scores_share_the_budget() {
    let mut config = SearchConfig { verdicts: Verdicts::Segments, width: 8, ..small() };
    config.branch_factor = 3;
    (config.branch.by, config.branch.prefer) = (BranchBy::Score, Prefer::High);
    let mut search = search(&config);
    run(&mut search, 0);
    run(&mut search, 1);
    assert_eq!(search.segments(), []);
    let ended: Vec<_> = search.ended_segments().collect();
    assert_eq!(ended, [(TREE, PathId(0)), (TREE, PathId(1))]);
    search.report(TREE, PathId(1), Verdict::Continue { score: 3.0f32.ln() }).unwrap();
    assert_eq!(search.segments(), []);
    search.report(TREE, PathId(0), Verdict::Continue { score: 0.0 }).unwrap();
    // six paths: one each, the other four by 1 : 3
    assert_eq!(forks(&search)[2..], [(Some(0), 5), (Some(1), 5), (Some(1), 5), (Some(1), 5)]);
    search.check().unwrap();
}

#[test]
fn verdicts_end_paths_and_low_scores_prune_them() {
    use FinishReason::{Pruned, Stop};
    let mut config = SearchConfig { verdicts: Verdicts::Segments, ..small() };
    config.initial_divergence = 4;
    (config.prune.by, config.prune.threshold) = (PruneBy::Score, 0.5);
    let mut search = search(&config);
    (0..4).for_each(|path| run(&mut search, path));
    search.report(TREE, PathId(0), Verdict::Stop).unwrap();
    search.report(TREE, PathId(1), Verdict::Prune).unwrap();
    search.report(TREE, PathId(2), Verdict::Continue { score: 0.4 }).unwrap();
    assert!(search.report(TREE, PathId(2), Verdict::Stop).is_err(), "it has its verdict");
    search.report(TREE, PathId(3), Verdict::Continue { score: 0.5 }).unwrap();
    assert_eq!(reasons(&search), [Some(Stop), Some(Pruned), Some(Pruned), None]);
    assert_eq!(search.segments().len(), 1);
    assert!(tree(&search).is_replayable);
}

#[test]
fn a_warm_up_of_scores_takes_the_lowest_of_each_leaf() {
    let mut config = SearchConfig { verdicts: Verdicts::Segments, branch_factor: 1, ..small() };
    config.budget.transfer = Transfer::Off;
    (config.prune.by, config.prune.warmup_leaves) = (PruneBy::Score, 1);
    let judge = |search: &mut Search, path, score| {
        run(search, path);
        search.report(TREE, PathId(path), Verdict::Continue { score }).unwrap();
    };
    let lowest = |scores: [f32; 2], next: f32| {
        let mut config = SearchConfig { max_depth: 9, ..config.clone() };
        config.width = 2;
        let mut search = search(&config);
        for score in scores {
            judge(&mut search, 0, score);
            judge(&mut search, 1, 7.0);
        }
        stop(&mut search, 0);
        judge(&mut search, 1, 7.0);
        judge(&mut search, 1, next);
        reasons(&search)[1]
    };
    for scores in [[2.0, 4.0], [4.0, 2.0]] {
        assert_eq!(lowest(scores, 2.0), None);
        assert_eq!(lowest(scores, 1.9), Some(FinishReason::Pruned));
    }
}

#[test]
fn a_warm_up_of_scores_knows_those_before_a_fork() {
    let mut config = SearchConfig { verdicts: Verdicts::Segments, max_depth: 9, ..small() };
    (config.width, config.initial_divergence, config.branch_factor) = (2, 1, 2);
    (config.prune.by, config.prune.warmup_leaves) = (PruneBy::Score, 1);
    let judge = |search: &mut Search, path, score| {
        run(search, path);
        search.report(TREE, PathId(path), Verdict::Continue { score }).unwrap();
    };
    for leaf in [0, 1] {
        let mut search = search(&config);
        judge(&mut search, 0, -5.0); // both leaves hold this segment
        stop(&mut search, leaf);
        judge(&mut search, 1 - leaf, -5.0);
        judge(&mut search, 1 - leaf, -5.1);
        assert_eq!(reasons(&search)[1 - leaf as usize], Some(FinishReason::Pruned), "{leaf}");
    }
}

#[test]
fn the_caller_forks_within_the_width_and_goes_back_at_any_width() {
    let mut search = search(&SearchConfig { width: 3, ..small() });
    for _ in 0..2 {
        search.push_token(TREE, PathId(0), token(1, -1.0, 1.0)).unwrap();
    }
    search.drain_events();
    assert!(search.forest().tree(TREE).unwrap().is_replayable);
    assert_eq!(search.fork(TREE, PathId(0), 3), Ok(PathId(2)));
    let expected =
        Event::Forked { tree: TREE, path: PathId(2), source: PathId(0), leader: PathId(2) };
    assert_eq!(search.drain_events().collect::<Vec<_>>(), [expected]);
    assert_eq!(tree(&search).path(PathId(2)).unwrap().origin, ForkOrigin::Caller);
    assert!(!tree(&search).is_replayable);
    assert_eq!(tree(&search).dependence, treepo::Dependence::SampledToken);
    assert!(search.fork(TREE, PathId(0), 3).unwrap_err().to_string().contains("of width 3"));
    assert_eq!(search.rewind(TREE, PathId(0), 4), Ok(PathId(3)));
    assert_eq!(search.rewind(TREE, PathId(3), 4), Ok(PathId(4)), "a new path has a new stream");
    search.check().unwrap();
    let lengths: Vec<_> = search.segments().iter().map(|s| s.max_new_tokens).collect();
    assert_eq!(lengths, [3, 2, 1]);
    finish(&mut search);
    let num_pruned = reasons(&search).iter().filter(|r| **r == Some(FinishReason::Pruned)).count();
    assert_eq!((num_pruned, tree(&search).paths().len()), (2, 5));
    assert!(search.fork(TREE, PathId(0), 3).is_err(), "the tree is done");
}

#[test]
fn pruning_the_last_running_path_ends_the_round() {
    let mut search = search(&small());
    run(&mut search, 0);
    search.prune(TREE, PathId(1)).unwrap();
    // f = 1 and A = 1 give four, of which one leaf counts already
    assert_eq!(search.segments().len(), 3);
    assert!(search.prune(TREE, PathId(1)).is_err());
    search.check().unwrap();
}

#[test]
fn a_subtree_is_pruned_whole_and_nothing_else() {
    let mut search = search(&SearchConfig { width: 8, ..small() });
    run(&mut search, 0);
    run(&mut search, 1);
    assert_eq!(forks(&search)[2..], [(Some(0), 5), (Some(1), 5)]);
    assert_eq!(search.prune_subtree(TREE, PathId(3), 5), Ok(2), "paths 1 and 3");
    let live = search.segments().iter().map(|s| s.path.0).collect::<Vec<_>>();
    assert_eq!(live, [0, 2]);
    assert_eq!(search.prune_subtree(TREE, PathId(1), 5), Ok(0), "they are leaves by then");
    assert_eq!(search.prune_subtree(TREE, PathId(1), 2), Ok(2), "the whole tree");
    assert!(search.is_done());
    search.check().unwrap();
}

#[test]
fn trees_that_share_a_step_are_not_replayable() {
    let config = SearchConfig {
        width: 8,
        opportunistic: Opportunistic::StepTokens,
        step_tokens: 12,
        ..small()
    };
    let mut search = search(&config);
    search.add_tree(2, &[5]).unwrap();
    assert!(search.forest().trees().iter().all(|tree| !tree.is_replayable));
    run(&mut search, 0);
    run(&mut search, 1);
    // 12 tokens for two trees in segments of 3 are two paths each
    assert_eq!(tree(&search).paths().len(), 2);
}

#[test]
fn the_first_divergence_keeps_to_the_share_of_the_step() {
    let config = SearchConfig {
        initial_divergence: 4,
        opportunistic: Opportunistic::StepTokens,
        step_tokens: 12,
        ..small()
    };
    let mut search = search(&config);
    search.add_tree(2, &[5]).unwrap();
    let sizes: Vec<_> = search.forest().trees().iter().map(|tree| tree.paths().len()).collect();
    assert_eq!(sizes, [4, 2]);
}

#[test]
fn missing_leaves_keep_to_the_share_of_the_step_too() {
    let mut config = SearchConfig {
        width: 8,
        opportunistic: Opportunistic::StepTokens,
        step_tokens: 9,
        ..small()
    };
    (config.fallback.from, config.fallback.copies) = (FallbackFrom::Answered, Some(5));
    let mut late = search(&config);
    stop(&mut late, 0);
    stop(&mut late, 1);
    assert_eq!(late.segments().len(), 3);
    config.fallback.refill = Refill::Early;
    let mut early = search(&config);
    stop(&mut early, 0);
    run(&mut early, 1);
    let origins: Vec<_> = tree(&early).paths()[2..].iter().map(|path| path.origin).collect();
    assert_eq!(origins, [ForkOrigin::Fallback; 2], "nothing of the share is left to branch");
    early.check().unwrap();
}

#[test]
fn a_token_total_limits_fallback_but_not_the_least_width() {
    let mut config = SearchConfig { width: 16, initial_divergence: 1, ..small() };
    config.fallback.from = FallbackFrom::Answered;
    (config.budget.total, config.budget.max_tokens) = (Total::UniqueTokens, 6);
    let leaves = |config: &SearchConfig| {
        let mut search = search(config);
        while let Some(segment) = search.segments().first().copied() {
            stop(&mut search, segment.path.0);
        }
        search.check().unwrap();
        tree(&search).paths().len()
    };
    // a leaf of one token leaves 5 for one more segment of 3, and then 4 for another, and 3
    assert_eq!(leaves(&config), 4);
    config.budget.min_width = 7;
    assert_eq!(leaves(&config), 7);
}

#[test]
fn the_first_divergence_is_drawn_by_tree() {
    let mut search = Search::new(Preset::Treepo.config(), 0).unwrap();
    let mut seen = [0; 9];
    for key in 0..200 {
        let tree = search.add_tree(key, &[1]).unwrap();
        seen[search.forest().tree(tree).unwrap().paths().len()] += 1;
    }
    assert!(seen[..2].iter().all(|&n| n == 0) && seen[2..].iter().all(|&n| n > 10), "{seen:?}");
}

#[test]
fn tokens_behind_a_stop_string_are_dropped() {
    let mut config = small();
    config.stop.strings = vec!["done".into()];
    let mut search = Search::new(config, 0).unwrap();
    search.set_texts(TokenTexts::new(["", "do", "ne"])).unwrap();
    let tree = search.add_tree(0, &[1]).unwrap();
    let tokens = [1, 2, 1].map(|id| token(id, -1.0, 1.0));
    search.complete_segment(tree, PathId(0), &tokens).unwrap();
    let own = search.forest().path(tree, PathId(0)).unwrap();
    assert_eq!((own.len(), own.finish), (3, Some(FinishReason::Stop)));
}

#[test]
fn the_branch_factor_is_drawn_by_round() {
    let mut config = SearchConfig { width: 16, initial_divergence: 1, ..small() };
    (config.branch_factor, config.max_branch_factor) = (1, Some(3));
    let mut search = Search::new(config, 0).unwrap();
    let mut seen = [0; 4];
    for key in 0..100 {
        let tree = search.add_tree(key, &[1]).unwrap();
        search.complete_segment(tree, PathId(0), &[token(1, -1.0, 1.0); 3]).unwrap();
        seen[search.forest().tree(tree).unwrap().paths().len()] += 1;
    }
    assert!(seen[0] == 0 && seen[1..].iter().all(|&n| n > 15), "{seen:?}");
}

/// How many paths leave each of two paths whose first segments have these (log-probability,
/// entropy) and whose second ones decide, at a temperature that gives one path everything.
fn favoured(by: BranchBy, prefer: Prefer, numbers: [[(f32, f32); 4]; 2]) -> [usize; 2] {
    let mut config = SearchConfig { width: 6, branch_factor: 1, segment_len: 2, ..small() };
    (config.branch.by, config.branch.prefer, config.branch.temperature) = (by, prefer, 0.01);
    config.max_branch_factor = Some(2);
    let mut search = Search::new(config, 0).unwrap();
    // a key whose factor is 1 after the first round and 2 after the second
    for key in 0..1000 {
        let tree = search.add_tree(key, &[5, 5]).unwrap();
        for half in [0, 2] {
            for (path, numbers) in (0..).map(PathId).zip(numbers) {
                let tokens = [half, half + 1].map(|i| token(1, numbers[i].0, numbers[i].1));
                if search.forest().tree(tree).unwrap().paths().len() == 2 {
                    search.complete_segment(tree, path, &tokens).unwrap();
                }
            }
        }
        let paths = search.forest().tree(tree).unwrap().paths();
        if paths.len() == 4 && paths[2].at == 6 {
            return [0, 1]
                .map(|p| paths.iter().filter(|path| path.parent() == Some(PathId(p))).count());
        }
    }
    [0, 0]
}

#[test]
fn each_weighting_reads_its_own_numbers() {
    use BranchBy::{MeanLogprob, PathLogprob, SegmentEntropy, SegmentLogprob};
    // path 0 is unsure in its first segment, path 1, a little less, in its second
    let numbers = [
        [(-5.0, 3.0), (-5.0, 3.0), (-1.0, 1.0), (-1.0, 2.0)],
        [(-1.0, 1.0), (-1.0, 1.0), (-4.0, 1.0), (-4.0, 1.0)],
    ];
    for (by, low) in [
        (PathLogprob, [3, 0]),
        (MeanLogprob, [3, 0]),
        (SegmentLogprob, [1, 2]),
        (SegmentEntropy, [1, 2]),
    ] {
        assert_eq!(favoured(by, Prefer::Low, numbers), low, "{by:?}");
        assert_ne!(favoured(by, Prefer::High, numbers), low, "{by:?}");
    }
}

#[test]
fn a_path_that_the_engine_ends_is_a_leaf_and_the_tree_goes_on() {
    let mut search = search(&small());
    let finish =
        |search: &mut Search, path, reason| search.complete_path(TREE, PathId(path), &[], reason);
    assert!(finish(&mut search, 0, FinishReason::Stop).is_err(), "it has no token yet");
    search.complete_segment(TREE, PathId(0), &[token(1, -1.0, 1.0)]).unwrap();
    assert!(finish(&mut search, 0, FinishReason::Pruned).is_err());
    finish(&mut search, 0, FinishReason::Stop).unwrap();
    assert!(finish(&mut search, 0, FinishReason::Stop).is_err(), "it has ended");
    assert_eq!(reasons(&search)[0], Some(FinishReason::Stop));
    assert_eq!(search.forest().path(TREE, PathId(0)).unwrap().len(), 3);
    assert!(tree(&search).is_replayable);
    run(&mut search, 1);
    assert_eq!(forks(&search).len(), 4, "the round is over, and its forks are the living path's");
    while !search.is_done() {
        let segment = search.segments()[0];
        run(&mut search, segment.path.0);
    }
    search.check().unwrap();
    assert_eq!(reasons(&search).iter().flatten().count(), 4);
}
