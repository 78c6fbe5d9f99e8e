//! Where a tree restarts.

use std::collections::BTreeSet;

use super::{Hand, config, count, right, wrong};
use crate::error::Result;
use crate::forest::FinishReason::{Length, Stop};
use crate::search::Alignment::{Segment, Token};
use crate::search::{
    BudgetConfig, FallbackAt, FallbackConfig, FallbackFrom, Refill, SearchConfig, Transfer,
};
use crate::sim::caller::Caller;
use crate::sim::rounds::Tally;

/// Cuts of a leaf with segments 1..3, 3..5, 5..6 and its least likely token at 4.
fn cuts(fallback: FallbackConfig) -> Vec<u32> {
    let mut hand = Hand::new(1);
    hand.push(0, &[(1, -1.0, 1.0), (1, -2.0, 1.0)]);
    hand.run(0, &[]);
    hand.push(0, &[(1, -1.0, 1.0), (1, -8.0, 1.0)]);
    hand.run(0, &[]);
    hand.run(0, &[9]);
    hand.end(0, Stop);
    let config = SearchConfig { fallback, ..config() };
    let cuts: BTreeSet<u32> = hand.replay(&config, &Caller::default(), |replay| replay.cuts(0));
    cuts.into_iter().collect()
}

#[test]
fn each_rule_has_its_cuts() {
    let rule = |at, alignment, window, max_windows| {
        cuts(FallbackConfig { at, window, max_windows, alignment, ..FallbackConfig::default() })
    };
    assert_eq!(rule(FallbackAt::Boundary, Segment, None, None), [1, 3, 5]);
    assert_eq!(rule(FallbackAt::Prompt, Token, None, None), [1]);
    assert_eq!(rule(FallbackAt::Window, Token, None, None), [1, 3, 5]);
    assert_eq!(rule(FallbackAt::Window, Token, Some(3), None), [1, 4]);
    assert_eq!(rule(FallbackAt::Window, Segment, Some(3), None), [1, 3]);
    assert_eq!(rule(FallbackAt::Window, Token, Some(1), Some(2)), [4, 5]);
    assert_eq!(rule(FallbackAt::Window, Token, Some(9), None), [1]);
    assert_eq!(rule(FallbackAt::LowestLogprob, Token, None, None), [4]);
    assert_eq!(rule(FallbackAt::LowestLogprob, Segment, None, None), [3]);
    assert_eq!(rule(FallbackAt::UnsureBlock, Token, Some(2), None), [1, 3, 5]);
    assert_eq!(rule(FallbackAt::SureBlock, Segment, Some(4), None), [1, 5]);
}

/// Two leaves, the first full, the second stopped, then restarts of one copy, all full.
fn restarted(restarts: &[(u32, u32)], fallback: FallbackConfig) -> Result<Tally> {
    let mut hand = Hand::new(2);
    for segment in [[1, 2], [3, 4], [5, 6]] {
        hand.run(0, &segment);
    }
    hand.end(0, Length);
    hand.run(1, &[1, 2]);
    hand.run(1, &[9]);
    hand.end(1, Stop);
    for &(path, at) in restarts {
        hand.restart(path, at);
    }
    hand.fill(2..2 + restarts.len() as u32, 7);
    let width = 2 + restarts.len() as u32;
    let budget = BudgetConfig { transfer: Transfer::Off, ..config().budget };
    hand.check(&SearchConfig { width, branch_factor: 1, fallback, budget, ..config() })
}

#[test]
fn restarts_leave_distinct_candidates_in_groups() {
    let from = |from, copies| FallbackConfig { from, copies, ..FallbackConfig::default() };
    let answered = from(FallbackFrom::Answered, None);
    right(restarted(&[(1, 3)], answered));
    right(restarted(&[(0, 1)], answered));
    wrong(restarted(&[(0, 3)], answered), "T2");
    wrong(restarted(&[(0, 2)], answered), "T2");
    for other in [FallbackFrom::All, FallbackFrom::Priority, FallbackFrom::Longest] {
        right(restarted(&[(0, 5)], from(other, None)));
        right(restarted(&[(0, 5), (1, 3)], from(other, None)));
        wrong(restarted(&[(0, 5), (0, 3)], from(other, None)), "T2");
        right(restarted(&[(0, 5), (0, 5)], from(other, Some(2))));
        wrong(restarted(&[(0, 5), (0, 3)], from(other, Some(2))), "T2");
    }
    wrong(restarted(&[(0, 1)], from(FallbackFrom::Nothing, None)), "T2");
    right(restarted(&[], from(FallbackFrom::Nothing, None)));
}

/// Two paths, of which one stops at once, in a tree of five leaves and two segments: the other
/// one can become two more at the end of the first round, three with the fork passed on.
fn early(num_branches: u32, num_restarts: u32, refill: Refill) -> Result<Tally> {
    let mut hand = Hand::new(2);
    hand.run(0, &[1, 2]);
    hand.run(1, &[1, 9]);
    hand.end(1, Stop);
    (0..num_branches).for_each(|_| hand.branch(0, 3));
    (0..num_restarts).for_each(|_| hand.restart(0, 1));
    hand.fill(0..1, 5);
    hand.fill(2..2 + num_branches, 5);
    hand.fill(2 + num_branches..2 + num_branches + num_restarts, 5);
    let fallback = FallbackConfig { refill, ..FallbackConfig::default() };
    let width = 2 + num_branches + num_restarts;
    let budget = BudgetConfig { transfer: Transfer::Off, ..config().budget };
    hand.check(&SearchConfig { width, max_depth: 2, fallback, budget, ..config() })
}

#[test]
fn a_refill_comes_early_exactly_when_the_live_paths_cannot_become_the_rest() {
    assert_eq!(count(&right(early(1, 2, Refill::Early)), "early_refills"), 1);
    assert_eq!(count(&right(early(1, 0, Refill::Early)), "early_refills"), 0);
    wrong(early(1, 2, Refill::Late), "T2");
    wrong(early(0, 1, Refill::Early), "T2");
    wrong(early(2, 0, Refill::Early), "T2");
}

#[test]
fn a_refill_that_comes_late_is_missed() {
    let tree = |refill| {
        let mut hand = Hand::new(2);
        hand.run(0, &[1, 2]);
        hand.run(1, &[1, 9]);
        hand.end(1, Stop);
        hand.branch(0, 3);
        hand.fill(0..1, 5);
        hand.fill(2..3, 5);
        hand.restart(0, 1);
        hand.fill(3..4, 5);
        let fallback = FallbackConfig { refill, ..FallbackConfig::default() };
        let budget = BudgetConfig { transfer: Transfer::Off, ..config().budget };
        hand.check(&SearchConfig { max_depth: 2, fallback, budget, ..config() })
    };
    right(tree(Refill::Late));
    wrong(tree(Refill::Early), "T2");
}
