//! Hand-made trees, right ones and wrong ones.

mod ends;
mod forks;
mod restarts;
mod shares;

use super::{Births, Replay, Tally};
use crate::error::{Error, Result};
use crate::forest::{FinishReason, Forest, ForkOrigin, SampledToken};
use crate::ids::{PathId, TreeId};
use crate::search::SearchConfig;
use crate::sim::caller::Caller;
use crate::sim::view::TreeView;

const TREE: TreeId = TreeId(0);

/// A tree that is made by hand, and when its paths were made.
struct Hand(Forest, Births);

impl Hand {
    /// A tree with a prompt of one token and `first` paths.
    fn new(first: u32) -> Self {
        let mut forest = Forest::new();
        forest.add_tree(0, 0, &[7]).expect("a prompt");
        let mut hand = Self(forest, Births::default());
        (1..first).for_each(|_| hand.fork(0, 1, ForkOrigin::Initial));
        hand.1.note(&hand.0);
        hand
    }

    fn fork(&mut self, path: u32, at: u32, origin: ForkOrigin) {
        self.0.fork(TREE, PathId(path), at, origin).expect("a fork");
    }

    fn branch(&mut self, path: u32, at: u32) {
        self.fork(path, at, ForkOrigin::Branch);
    }

    fn restart(&mut self, path: u32, at: u32) {
        self.fork(path, at, ForkOrigin::Fallback);
    }

    /// Appends tokens with these log-probabilities and entropies.
    fn push(&mut self, path: u32, tokens: &[(u32, f32, f32)]) {
        self.1.note(&self.0);
        for &(id, logprob, entropy) in tokens {
            let token = SampledToken { id, logprob, entropy };
            self.0.push_token(TREE, PathId(path), token, 0).expect("a token");
        }
    }

    /// Appends a segment.
    fn run(&mut self, path: u32, ids: &[u32]) {
        let tokens: Vec<_> = ids.iter().map(|&id| (id, -1.0, 1.0)).collect();
        self.push(path, &tokens);
        self.0.mark(TREE, PathId(path)).expect("a mark");
    }

    fn end(&mut self, path: u32, reason: FinishReason) {
        self.0.finish(TREE, PathId(path), reason).expect("a live path");
    }

    /// Runs segments of two tokens to the end of all these paths, which are full then.
    fn fill(&mut self, paths: std::ops::Range<u32>, max_len: u32) {
        self.fill_by(2, paths, max_len);
    }

    /// Runs aligned segments of this length to the end of all these paths, which are full then.
    fn fill_by(&mut self, segment_len: u32, paths: std::ops::Range<u32>, max_len: u32) {
        for path in paths {
            loop {
                let len = self.0.path(TREE, PathId(path)).expect("a path").len();
                if len == max_len {
                    break;
                }
                let end = 1 + ((len - 1) / segment_len + 1) * segment_len;
                self.push(path, &[(1, -1.0, 0.0); 9][..(end.min(max_len) - len) as usize]);
                self.run(path, &[]);
            }
            self.end(path, FinishReason::Length);
        }
    }

    fn replay<T>(
        &self,
        config: &SearchConfig,
        caller: &Caller,
        check: impl FnOnce(&Replay<'_>) -> T,
    ) -> T {
        let tree = TreeView::all(&self.0).expect("a tree").remove(0);
        let births = self.1.of_tree(0);
        check(&Replay { config, caller, tree: &tree, births, place: "hand".into() })
    }

    fn check_with(&self, config: &SearchConfig, caller: &Caller) -> Result<Tally> {
        self.replay(config, caller, |replay| {
            replay.check_limits()?;
            replay.check_tree()
        })
    }

    fn check(&self, config: &SearchConfig) -> Result<Tally> {
        self.check_with(config, &Caller::default())
    }
}

/// Segments of two tokens, three of them, four leaves, two of them from the prompt.
fn config() -> SearchConfig {
    SearchConfig {
        width: 4,
        segment_len: 2,
        max_depth: 3,
        branch_factor: 2,
        initial_divergence: 2,
        eos_token_ids: vec![9],
        ..SearchConfig::default()
    }
}

/// Holds.
fn right(result: Result<Tally>) -> Tally {
    result.unwrap_or_else(|error| panic!("a right tree is refused: {error}"))
}

/// Is refused for this law.
fn wrong(result: Result<Tally>, law_number: &str) {
    match result {
        Err(Error::LawBroken { law, detail }) => assert_eq!(law, law_number, "{detail}"),
        other => panic!("a wrong tree passes: {other:?}"),
    }
}

fn count(tally: &Tally, name: &str) -> u64 {
    tally.entries().find(|entry| entry.0 == name).map_or(0, |entry| entry.1)
}

#[test]
fn an_even_tree_is_right_and_others_are_not() {
    let even = |forks: &[u32]| {
        let mut hand = Hand::new(2);
        hand.run(0, &[1, 2]);
        hand.run(1, &[1, 2]);
        for &path in forks {
            hand.branch(path, 3);
        }
        hand.fill(0..2 + forks.len() as u32, 7);
        hand.check(&config())
    };
    assert_eq!(count(&right(even(&[0, 1])), "branch_Even"), 1);
    wrong(even(&[0, 0]), "T2");
    wrong(even(&[1, 0]), "T2");
    wrong(even(&[0]), "T2");
    wrong(even(&[0, 1, 1]), "T2");
}

#[test]
fn lengths_and_segments_are_held_to_their_limits() {
    let tree = |segments: &[&[u32]], reason| {
        let mut hand = Hand::new(1);
        for segment in segments {
            hand.run(0, segment);
        }
        hand.end(0, reason);
        hand.check(&SearchConfig { width: 1, initial_divergence: 1, ..config() })
    };
    right(tree(&[&[1, 2], &[1, 2], &[1, 2]], FinishReason::Length));
    right(tree(&[&[1, 2], &[9]], FinishReason::Stop));
    wrong(tree(&[&[1, 2], &[1, 2], &[1, 2]], FinishReason::Depth), "T5");
    wrong(tree(&[&[1, 2], &[1, 2]], FinishReason::Length), "T5");
    wrong(tree(&[&[1, 2], &[1, 2], &[1, 2], &[1]], FinishReason::Length), "T1");
    wrong(tree(&[&[1, 2, 3], &[9]], FinishReason::Stop), "T1");
    wrong(tree(&[&[1], &[9]], FinishReason::Stop), "T1");
    wrong(tree(&[&[9], &[1, 9]], FinishReason::Stop), "T1");
    wrong(tree(&[&[9, 9]], FinishReason::Stop), "T5");
}

#[test]
fn the_initial_divergence_is_fixed_or_drawn() {
    let tree = |first| {
        let mut hand = Hand::new(first);
        hand.fill(0..first, 3);
        let config = SearchConfig { max_depth: 1, width: 3, ..config() };
        let nothing = crate::search::FallbackFrom::Nothing;
        let fallback = crate::search::FallbackConfig { from: nothing, ..config.fallback };
        let fixed = SearchConfig { fallback, ..config };
        let drawn = SearchConfig { max_initial_divergence: Some(5), ..fixed.clone() };
        (hand.check(&fixed), hand.check(&drawn))
    };
    wrong(tree(1).0, "T2");
    right(tree(2).0);
    wrong(tree(3).0, "T2");
    wrong(tree(1).1, "T2");
    right(tree(2).1);
    assert_eq!(count(&right(tree(3).1), "drawn_divergences"), 1);
    wrong(tree(4).1, "T2");
}

#[test]
fn weights_split_the_mass_evenly_over_continuations() {
    let mut hand = Hand::new(2);
    hand.run(0, &[1, 2]);
    hand.run(1, &[1, 2]);
    hand.branch(0, 3);
    hand.branch(0, 3);
    hand.fill(0..4, 7);
    let weights = hand.replay(&config(), &Caller::default(), |replay| {
        (0..4).map(|p| replay.weight(p)).collect::<Vec<_>>()
    });
    let third = 2.0 / 3.0;
    let expected = [third, 2.0, third, third];
    assert!(weights.iter().zip(expected).all(|(w, e)| (w - e).abs() < 1e-12), "{weights:?}");
}
