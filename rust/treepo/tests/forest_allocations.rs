//! What growing a tree allocates.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod counting;

use counting::count;
use treepo::{Forest, ForkOrigin, PathId, SampledToken, TreeId};

const WIDTH: usize = 32;
const SEGMENT: usize = 21;
const ROUNDS: usize = 5;

/// Grows `WIDTH` paths token by token in turns, with forks at ends and elsewhere; returns the
/// number of tokens and marks.
fn grow(forest: &mut Forest, tree: TreeId) -> (usize, usize) {
    let (mut num_tokens, mut num_marks, mut num_paths) = (0, 0, 1u32);
    for round in 0..ROUNDS {
        for _ in 0..SEGMENT {
            for path in (0..num_paths).map(PathId) {
                let token = SampledToken { id: path.0, logprob: -1.0, entropy: 1.0 };
                forest.push_token(tree, path, token, 7).unwrap();
                num_tokens += 1;
            }
        }
        for path in (0..num_paths).map(PathId) {
            forest.mark(tree, path).unwrap();
            num_marks += 1;
            let len = forest.path(tree, path).unwrap().len();
            let at = if round % 2 == 0 { len } else { len - SEGMENT as u32 - 1 };
            forest.fork(tree, path, at, ForkOrigin::Branch).unwrap();
        }
        num_paths *= 2;
    }
    (num_tokens, num_marks)
}

#[test]
fn a_reserved_tree_grows_without_allocation() {
    let mut trial = Forest::new();
    let tree = trial.add_tree(0, 0, &[1, 2, 3]).unwrap();
    let (num_tokens, num_marks) = grow(&mut trial, tree);
    assert_eq!(trial.num_paths(), WIDTH);

    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 0, &[1, 2, 3]).unwrap();
    forest.reserve_tree(tree, WIDTH - 1, num_tokens, num_marks).unwrap();
    let (num_allocations, _) = count(|| grow(&mut forest, tree));
    assert_eq!(num_allocations, 0);
    forest.check().unwrap();
}

#[test]
fn a_tree_that_is_not_reserved_allocates_rarely() {
    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 0, &[1, 2, 3]).unwrap();
    let (num_allocations, (num_tokens, _)) = count(|| grow(&mut forest, tree));
    assert!(num_allocations < num_tokens / 10, "{num_allocations} for {num_tokens} tokens");
    assert!(num_allocations > 0, "nothing is counted");
}

#[test]
fn reading_a_path_allocates_nothing() {
    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 0, &[1, 2, 3]).unwrap();
    grow(&mut forest, tree);
    let tree = forest.tree(tree).unwrap();
    let mut tail = [0u32; 40];
    let (num_allocations, ()) = count(|| {
        for path in (0..WIDTH as u32).map(PathId) {
            let len = tree.path(path).unwrap().len();
            let start = len.saturating_sub(40);
            let out = &mut tail[..(len - start) as usize];
            tree.copy_tokens(path, start, len, out).unwrap();
            let tokens = tree.rev_tokens(path).zip(out.iter().rev());
            assert!(tokens.clone().all(|(token, id)| token.id == *id));
            let own_len = tree.path(path).unwrap().own_len() as usize;
            let columns = tree.own_logprobs(path).zip(tree.own_entropies(path));
            let kinds = tree.own_kinds(path).zip(tree.own_versions(path));
            assert_eq!(columns.zip(kinds).zip(tree.own_ids(path)).count(), own_len);
            assert!(tree.own_marks(path).is_sorted());
        }
    });
    assert_eq!(num_allocations, 0);
}
