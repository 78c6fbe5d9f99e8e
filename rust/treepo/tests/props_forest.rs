//! The forest against plain token vectors.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod naive_forest;

use naive_forest::{Pair, op};
use proptest::prelude::*;
use treepo::{Dependence, Forest, PathId, TreeId};

proptest! {
    #[test]
    fn t3_t4_a_forest_is_its_paths_token_vectors(ops in prop::collection::vec(op(), 0..80)) {
        Pair::grow(&ops).check();
    }
}

#[test]
fn unknown_trees_and_paths_are_errors_or_empty() {
    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 0, &[1, 2]).unwrap();
    let (path, nowhere) = (PathId(1), TreeId(1));
    assert!(forest.path(tree, path).is_err() && forest.path(nowhere, PathId(0)).is_err());
    assert!(forest.set_weight(tree, path, 1.0).is_err());
    assert!(forest.set_weight(tree, PathId(0), f32::NAN).is_err());
    assert!(forest.set_dependence(nowhere, Dependence::SampledToken).is_err());
    assert!(forest.reserve_tree(nowhere, 1, 1, 1).is_err());
    assert!(forest.reserve_tree(tree, usize::MAX, usize::MAX, usize::MAX).is_err());
    let own = forest.tree(tree).unwrap();
    assert!(own.path(path).is_err() && own.tokens(path).is_err() && own.boundaries(path).is_err());
    assert!(own.copy_tokens::<u32>(path, 0, 0, &mut []).is_err());
    for (start, end, len) in [(0, 3, 3), (1, 0, 0), (0, 2, 1), (0, u32::MAX, 2)] {
        let mut out = vec![0u32; len];
        assert!(own.copy_tokens(PathId(0), start, end, &mut out).is_err(), "{start}..{end}");
    }
    let path = PathId(u32::MAX);
    assert_eq!(own.own_ids(path).count() + own.own_logprobs(path).count(), 0);
    assert_eq!(own.own_entropies(path).count() + own.own_kinds(path).count(), 0);
    assert_eq!(own.own_marks(path).count() + own.own_versions(path).count(), 0);
    assert_eq!((own.rev_tokens(path).count(), own.last_mark(path)), (0, None));
}
