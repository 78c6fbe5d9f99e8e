//! How many forks a round has and what they leave.

use super::{Hand, config, count, right, wrong};
use crate::error::Result;
use crate::forest::FinishReason::{Length, Stop};
use crate::search::{
    BranchBy, BranchConfig, BudgetConfig, FallbackConfig, FallbackFrom, SearchConfig, Total,
    Transfer,
};
use crate::sim::rounds::Tally;

/// Two paths of which one stops in the first round; the other gets these forks.
fn after_a_stop(num_forks: u32, config: &SearchConfig) -> Result<Tally> {
    let mut hand = Hand::new(2);
    hand.run(0, &[1, 2]);
    hand.run(1, &[9]);
    hand.end(1, Stop);
    (0..num_forks).for_each(|_| hand.branch(0, 3));
    hand.run(0, &[1, 2]);
    (2..2 + num_forks).for_each(|path| hand.run(path, &[1, 2]));
    (0..num_forks + 2).filter(|&path| path != 1).for_each(|path| hand.end(path, Length));
    hand.check(config)
}

fn two_rounds(budget: BudgetConfig) -> SearchConfig {
    let fallback = FallbackConfig { from: FallbackFrom::Nothing, ..FallbackConfig::default() };
    SearchConfig { width: 8, max_depth: 2, budget, fallback, ..config() }
}

#[test]
fn finished_paths_pass_their_forks_on_or_lose_them() {
    let config = two_rounds(BudgetConfig::default());
    right(after_a_stop(3, &config));
    wrong(after_a_stop(1, &config), "T2");
    wrong(after_a_stop(2, &config), "T2");
    let off = BudgetConfig { transfer: Transfer::Off, ..BudgetConfig::default() };
    let tally = right(after_a_stop(1, &two_rounds(off)));
    assert_eq!(count(&tally, "forks_lost_without_transfer"), 1);
    wrong(after_a_stop(3, &two_rounds(off)), "T2");
}

#[test]
fn a_factor_may_be_drawn_within_its_range() {
    let off = BudgetConfig { transfer: Transfer::Off, ..BudgetConfig::default() };
    let config = SearchConfig { max_branch_factor: Some(4), ..two_rounds(off) };
    wrong(after_a_stop(0, &config), "T2");
    right(after_a_stop(1, &config));
    assert_eq!(count(&right(after_a_stop(3, &config)), "drawn_factors"), 1);
    wrong(after_a_stop(4, &config), "T2");
}

#[test]
fn token_totals_bound_the_forks() {
    let total = |total, max_tokens, min_width| {
        two_rounds(BudgetConfig { total, max_tokens, min_width, ..BudgetConfig::default() })
    };
    // Three of the tokens are used, a segment has two, a completion four.
    for kind in [Total::UniqueTokens, Total::PublishedTokens] {
        right(after_a_stop(3, &total(kind, 1000, 1)));
        wrong(after_a_stop(2, &total(kind, 1000, 1)), "T2");
        wrong(after_a_stop(3, &total(kind, 6, 1)), "T2");
        wrong(after_a_stop(1, &total(kind, 4, 1)), "T2");
        assert_eq!(count(&right(after_a_stop(0, &total(kind, 4, 1))), "token_totals_that_bind"), 1);
        wrong(after_a_stop(0, &total(kind, 4, 3)), "T2");
        right(after_a_stop(1, &total(kind, 4, 3)));
    }
}

/// Two paths with these tokens in their first segment, then these forks.
fn token_tree(branch: BranchConfig, width: u32, forks: &[(u32, u32)]) -> Result<Tally> {
    let mut hand = Hand::new(2);
    hand.push(0, &[(1, -1.0, 2.0), (2, -3.0, 0.5), (3, -2.0, 1.5)]);
    hand.run(0, &[]);
    hand.push(1, &[(1, -5.0, 0.1), (2, -4.0, 0.2), (3, -1.0, 0.9)]);
    hand.run(1, &[]);
    for &(path, at) in forks {
        hand.branch(path, at);
    }
    hand.fill_by(3, 0..2 + forks.len() as u32, 7);
    let config = SearchConfig { segment_len: 3, max_depth: 2, width, branch, ..config() };
    let fallback = FallbackConfig { from: FallbackFrom::Nothing, ..config.fallback };
    hand.check(&SearchConfig { fallback, ..config })
}

#[test]
fn token_rules_fork_the_chosen_positions() {
    let branch = |by, num_positions, copies| BranchConfig {
        by,
        num_positions,
        copies,
        threshold: 1.0,
        ..BranchConfig::default()
    };
    let surprisal = branch(BranchBy::TokenSurprisal, 1, 1);
    right(token_tree(surprisal, 4, &[(0, 2), (1, 1)]));
    wrong(token_tree(surprisal, 4, &[(0, 1), (1, 1)]), "T2");
    wrong(token_tree(surprisal, 4, &[(0, 4), (1, 4)]), "T2");
    wrong(token_tree(surprisal, 4, &[(0, 2), (0, 2)]), "T2");
    right(token_tree(branch(BranchBy::TokenSurprisal, 1, 2), 6, &[(0, 2), (0, 2), (1, 1), (1, 1)]));
    let entropy = branch(BranchBy::TokenEntropy, 2, 1);
    right(token_tree(entropy, 6, &[(0, 1), (0, 3), (1, 3), (1, 2)]));
    wrong(token_tree(entropy, 6, &[(0, 1), (0, 2), (1, 3), (1, 2)]), "T2");
    let above = branch(BranchBy::TokenEntropyAbove, 1, 1);
    right(token_tree(above, 4, &[(0, 1)]));
    wrong(token_tree(above, 4, &[(0, 3)]), "T2");
    let both = branch(BranchBy::TokenEntropyAbove, 2, 1);
    right(token_tree(both, 4, &[(0, 1), (0, 3)]));
    let short = branch(BranchBy::TokenSurprisal, 2, 1);
    right(token_tree(short, 4, &[(1, 1), (1, 2)]));
    wrong(token_tree(short, 4, &[(0, 2), (1, 1)]), "T2");
    wrong(token_tree(above, 4, &[(0, 1), (1, 3)]), "T2");
}

#[test]
fn a_score_or_entropy_decides_who_branches() {
    let tree = |by, path: u32| {
        let mut hand = Hand::new(2);
        hand.push(0, &[(1, -1.0, 9.0), (2, -1.0, 9.0)]);
        hand.run(0, &[]);
        hand.push(1, &[(1, -9.0, 1.0), (2, -9.0, 1.0)]);
        hand.run(1, &[]);
        (0..2).for_each(|_| hand.branch(path, 3));
        hand.fill(0..4, 7);
        let branch = BranchConfig { by, temperature: 0.1, ..BranchConfig::default() };
        hand.check(&SearchConfig { branch, ..config() })
    };
    for by in [BranchBy::PathLogprob, BranchBy::MeanLogprob, BranchBy::SegmentLogprob] {
        assert_eq!(count(&right(tree(by, 1)), "weighted_splits"), 1);
        wrong(tree(by, 0), "T2");
    }
    right(tree(BranchBy::SegmentEntropy, 1));
    wrong(tree(BranchBy::SegmentEntropy, 0), "T2");
}

#[test]
fn tokens_of_leaves_are_sampled_anew_where_no_path_lives() {
    let tree = |at| {
        let mut hand = Hand::new(2);
        hand.push(0, &[(1, -1.0, 1.0), (2, -3.0, 1.0)]);
        hand.run(0, &[]);
        hand.push(1, &[(1, -2.0, 1.0), (2, -1.0, 1.0)]);
        hand.run(1, &[]);
        (0..2).for_each(|path| hand.end(path, Length));
        hand.branch(0, at);
        hand.fill(2..3, 3);
        let by = BranchBy::TokenSurprisal;
        let branch = BranchConfig { by, num_positions: 1, ..BranchConfig::default() };
        hand.check(&SearchConfig { width: 3, max_depth: 1, branch, ..config() })
    };
    assert_eq!(count(&right(tree(2)), "tokens_of_leaves_sampled_anew"), 1);
    wrong(tree(1), "T2");
}
