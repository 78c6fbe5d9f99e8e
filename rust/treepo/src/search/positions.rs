//! The token rules: which tokens of a round are sampled anew.

use super::walk::backwards;
use super::{BranchBy, BranchConfig};
use crate::forest::Tree;
use crate::ids::PathId;

/// A token that forks leave: they share what is before `at`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Position {
    pub(super) path: PathId,
    pub(super) at: u32,
    /// The larger, the earlier it is forked.
    priority: f32,
}

/// Whether the rule forks at tokens instead of ends of paths.
pub(super) fn is_token_rule(by: BranchBy) -> bool {
    use BranchBy::{TokenEntropy, TokenEntropyAbove, TokenSurprisal};
    matches!(by, TokenSurprisal | TokenEntropy | TokenEntropyAbove)
}

/// Adds a path's positions of the segment whose own tokens begin at `start`. O(its tokens).
pub(super) fn add(
    config: &BranchConfig,
    tree: &Tree,
    path: PathId,
    start: u32,
    out: &mut Vec<Position>,
) {
    let first = out.len();
    let count = config.num_positions as usize;
    let by = config.by;
    let tokens = backwards(tree, path).take_while(|token| token.position >= start);
    out.extend(tokens.filter(|token| token.is_sampled).map(|token| {
        let priority = if by == BranchBy::TokenSurprisal { -token.logprob } else { token.entropy };
        Position { path, at: token.position, priority }
    }));
    if by == BranchBy::TokenEntropyAbove {
        keep_first_above(config.threshold, first, count, out);
    } else if out.len() - first > count {
        if count > 0 {
            out[first..].select_nth_unstable_by(count - 1, first_forked);
        }
        out.truncate(first + count);
    }
}

/// Keeps the first positions from `first` on whose entropy is above the threshold, and puts them in
/// the order of their rank.
fn keep_first_above(threshold: f32, first: usize, count: usize, out: &mut Vec<Position>) {
    out[first..].reverse(); // they came newest first
    let mut end = first;
    for i in first..out.len() {
        if out[i].priority > threshold && end - first < count {
            out[end] = Position { priority: -((end - first) as f32), ..out[i] };
            end += 1;
        }
    }
    out.truncate(end);
}

/// Puts the positions of all paths in the order in which they are forked: larger values first, the
/// older path and the earlier position of equals. `TokenEntropyAbove` takes every path's first
/// position before any path's second.
pub(super) fn sort(positions: &mut [Position]) {
    positions.sort_unstable_by(first_forked);
}

fn first_forked(a: &Position, b: &Position) -> std::cmp::Ordering {
    b.priority.total_cmp(&a.priority).then(a.path.cmp(&b.path)).then(a.at.cmp(&b.at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::{Forest, SampledToken};

    fn chosen(by: BranchBy, num_positions: u32, numbers: &[(f32, f32)]) -> Vec<u32> {
        let mut forest = Forest::new();
        let tree = forest.add_tree(0, 0, &[1, 1]).unwrap_or(crate::TreeId(0));
        for &(logprob, entropy) in numbers {
            let token = SampledToken { id: 1, logprob, entropy };
            assert!(forest.push_token(tree, PathId(0), token, 0).is_ok());
        }
        let config = BranchConfig { by, num_positions, ..BranchConfig::default() };
        let mut out = Vec::new();
        add(&config, &forest.trees()[0], PathId(0), 2, &mut out);
        sort(&mut out);
        out.iter().map(|position| position.at).collect()
    }

    const NUMBERS: [(f32, f32); 5] =
        [(-1.0, 0.5), (-4.0, 2.5), (-0.1, 3.0), (-4.0, 0.1), (-2.0, 1.5)];

    #[test]
    fn the_largest_surprisals_are_forked_and_the_earlier_of_equals() {
        assert_eq!(chosen(BranchBy::TokenSurprisal, 1, &NUMBERS), [3]);
        assert_eq!(chosen(BranchBy::TokenSurprisal, 3, &NUMBERS), [3, 5, 6]);
        assert_eq!(chosen(BranchBy::TokenSurprisal, 9, &NUMBERS), [3, 5, 6, 2, 4]);
    }

    #[test]
    fn entropy_counts_where_the_rule_says_so() {
        assert_eq!(chosen(BranchBy::TokenEntropy, 2, &NUMBERS), [4, 3]);
        assert_eq!(chosen(BranchBy::TokenEntropyAbove, 2, &NUMBERS), [3, 4]);
        assert_eq!(chosen(BranchBy::TokenEntropyAbove, 9, &NUMBERS), [3, 4, 6]);
    }
}
