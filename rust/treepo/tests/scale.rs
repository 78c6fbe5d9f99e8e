//! Large trees: work grows with tokens and paths, not with their products.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::{Forest, ForkOrigin, PathId, Purpose, SampledToken, Stream, TreeId};

const NUM_PATHS: u32 = 100_000;
const LONG: u32 = 100_000;

fn push(forest: &mut Forest, tree: TreeId, path: PathId, id: u32) {
    let token = SampledToken { id, logprob: -1.0, entropy: 1.0 };
    forest.push_token(tree, path, token, 1).unwrap();
}

/// One path of `LONG` tokens with a mark every seven of them.
fn long_path() -> (Forest, TreeId) {
    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 0, &[1]).unwrap();
    for id in 1..LONG {
        push(&mut forest, tree, PathId(0), id);
        if id % 7 == 0 {
            forest.mark(tree, PathId(0)).unwrap();
        }
    }
    (forest, tree)
}

fn check_round_trip(forest: &Forest) {
    forest.check().unwrap();
    let columns = forest.columns();
    assert_eq!(columns.token_id.len(), forest.num_tokens());
    let again = Forest::from_columns(&columns).unwrap();
    assert_eq!(again.nodes(), forest.nodes());
}

#[test]
fn a_hundred_thousand_paths_fork_from_random_places() {
    let (mut forest, tree) = long_path();
    let stream = Stream::of_tree(1, 2);
    for path in 1..NUM_PATHS {
        let from = PathId(stream.below(Purpose::Branch, u64::from(path), path));
        let len = forest.path(tree, from).unwrap().len();
        let at = 1 + stream.below(Purpose::Token, u64::from(path), len);
        let new = forest.fork(tree, from, at.min(len), ForkOrigin::Caller).unwrap();
        for id in 0..path % 3 {
            push(&mut forest, tree, new, id);
            forest.mark(tree, new).unwrap();
        }
    }
    check_round_trip(&forest);
    assert_eq!(forest.num_paths(), NUM_PATHS as usize);
}

#[test]
fn a_hundred_thousand_paths_leave_one_end_before_and_after_its_mark() {
    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 0, &[1]).unwrap();
    push(&mut forest, tree, PathId(0), 2);
    let mut newest = PathId(0);
    for _ in 1..NUM_PATHS {
        newest = forest.fork(tree, PathId(0), 2, ForkOrigin::Caller).unwrap();
        push(&mut forest, tree, newest, 3);
        forest.mark(tree, newest).unwrap();
    }
    forest.mark(tree, PathId(0)).unwrap();
    assert_eq!(forest.path(tree, newest).unwrap().depth(), 2);
    check_round_trip(&forest);
}

#[test]
fn a_chain_of_forks_at_the_end_needs_no_walk() {
    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 0, &[1]).unwrap();
    let mut newest = PathId(0);
    for id in 1..NUM_PATHS {
        push(&mut forest, tree, newest, id);
        forest.mark(tree, newest).unwrap();
        newest = forest.fork(tree, newest, id + 1, ForkOrigin::Branch).unwrap();
    }
    let own = forest.tree(tree).unwrap();
    assert_eq!(own.path(newest).unwrap().depth(), NUM_PATHS - 1);
    let ids = own.rev_tokens(newest).map(|token| token.id);
    assert!(ids.eq((1..NUM_PATHS).rev().chain([1])));
    assert_eq!(own.boundaries(newest).unwrap().len(), NUM_PATHS as usize - 1);
    check_round_trip(&forest);
}

#[test]
fn long_paths_take_at_most_16_bytes_a_token() {
    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 0, &[1]).unwrap();
    (1..LONG).for_each(|id| push(&mut forest, tree, PathId(0), id));
    let bytes = forest.tree(tree).unwrap().column_bytes();
    assert!(bytes <= 16 * LONG as usize, "{bytes} bytes for {LONG} tokens");
}
