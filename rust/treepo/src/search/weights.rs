//! Inclusion weights: what each leaf of a finished tree stands for.
//!
//! A tree of n paths starts with mass n at its root. Wherever continuations split, at one position
//! of one path, the mass divides evenly between the continuing path and each path forked there;
//! what arrives at a leaf is its weight. So the weights of a tree add up to its number of paths, and
//! in a perfectly balanced tree each is 1.
//!
//! The weighted mean of the leaves' rewards is the child mean of the tree: a value at each split is
//! the plain mean over its continuations. Where every decision to fork depends on nothing but the
//! tokens before the fork and on other subtrees ([`Dependence::Prefix`](super::Dependence)), the
//! continuations of a split are exchangeable draws of the model, so this mean is an unbiased
//! estimate of the value of the prompt. The plain mean over leaves is not: a subtree gets more
//! leaves, for instance, because the siblings beside it ended early.
//! Under [`Dependence::SampledToken`](super::Dependence) neither is unbiased.

use crate::error::Result;
use crate::forest::{Forest, Tree};
use crate::ids::{PathId, TreeId};

/// Buffers, so that nothing is allocated once they have grown.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    forks: Vec<(PathId, u32, PathId)>,
    masses: Vec<f64>,
}

/// Writes the inclusion weight of every path of the tree. O(paths log paths).
///
/// # Errors
/// `InvalidInput` for a tree that does not exist.
pub(super) fn write(forest: &mut Forest, tree: TreeId, scratch: &mut Scratch) -> Result<()> {
    divide(&forest.trees()[tree.index()], scratch);
    for (p, &mass) in scratch.masses.iter().enumerate() {
        forest.set_weight(tree, PathId(p as u32), mass as f32)?;
    }
    Ok(())
}

fn divide(tree: &Tree, scratch: &mut Scratch) {
    let Scratch { forks, masses } = scratch;
    forks.clear();
    let ids = (0..).map(PathId).zip(tree.paths());
    forks.extend(ids.filter_map(|(id, path)| Some((path.parent()?, path.at, id))));
    forks.sort_unstable();
    masses.clear();
    masses.resize(tree.paths().len(), 0.0);
    masses[0] = masses.len() as f64;
    // a parent is older than its forks, so its mass has arrived when its forks are reached
    for splits in forks.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let parent = splits[0].0.index();
        masses[parent] /= (splits.len() + 1) as f64;
        for &(_, _, child) in splits {
            masses[child.index()] = masses[parent];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::{ForkOrigin, SampledToken};

    /// A tree whose paths leave these parents at these positions; every path gets `own` tokens.
    fn weights(own: u32, forks: &[(u32, u32)]) -> Vec<f32> {
        let mut forest = Forest::new();
        let tree = forest.add_tree(0, 0, &[1]).unwrap_or(TreeId(0));
        let token = SampledToken { id: 1, logprob: -1.0, entropy: 1.0 };
        let grow = |forest: &mut Forest, path| {
            for _ in 0..own {
                assert!(forest.push_token(tree, path, token, 0).is_ok());
            }
        };
        grow(&mut forest, PathId(0));
        for &(parent, at) in forks {
            let path = forest.fork(tree, PathId(parent), at, ForkOrigin::Branch);
            grow(&mut forest, path.unwrap_or(PathId(0)));
        }
        assert!(write(&mut forest, tree, &mut Scratch::default()).is_ok());
        forest.trees()[0].paths().iter().map(|path| path.weight).collect()
    }

    #[test]
    fn a_balanced_tree_and_a_flat_one_weigh_one_each() {
        assert_eq!(weights(4, &[]), [1.0]);
        assert_eq!(weights(4, &[(0, 1), (0, 1), (0, 1)]), [1.0; 4]);
        // 2, then 2 each
        assert_eq!(weights(4, &[(0, 1), (0, 3), (1, 3)]), [1.0; 4]);
    }

    #[test]
    fn mass_divides_at_every_split() {
        // two at the prompt, the first of them in three at 3 and the last of these in two at 5
        let forks = [(0, 1), (0, 3), (0, 3), (3, 5)];
        let expected = [5.0 / 6.0, 5.0 / 2.0, 5.0 / 6.0, 5.0 / 12.0, 5.0 / 12.0];
        for (weight, expected) in weights(6, &forks).iter().zip(expected) {
            assert!((f64::from(*weight) - expected).abs() < 1e-6, "{weight} is not {expected}");
        }
        // one path splits at 2 and again at 4
        assert_eq!(weights(6, &[(0, 4), (0, 2)]), [0.75, 0.75, 1.5]);
    }
}
