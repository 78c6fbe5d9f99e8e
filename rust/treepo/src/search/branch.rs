//! How many children a tree's live paths get at the end of a round.

use super::SearchConfig;
use crate::key::{Purpose, Stream};

/// Paths that live after the round: every live path keeps one; beyond that the tree has
/// `branch_factor` for each live path and, by budget transfer, for each path that finished in the
/// round, but never more than its missing leaves.
///
/// `TreePO`: `total = max(A, min(W - F, N f + N A))`.
pub(super) fn budget(config: &SearchConfig, missing: u32, num_finished: u32, num_live: u32) -> u32 {
    let wanted = config.branch_factor.saturating_mul(num_finished + num_live);
    wanted.min(missing).max(num_live)
}

/// Splits the budget evenly; the remainder goes to neighbours from a keyed random place on, so
/// that no path is preferred.
pub(super) fn even_split(
    budget: u32,
    num_live: u32,
    stream: Stream,
    round: u32,
) -> impl Iterator<Item = u32> {
    let (share, remainder) = (budget / num_live, budget % num_live);
    let first = stream.below(Purpose::Branch, u64::from(round), num_live);
    (0..num_live).map(move |i| share + u32::from((i + num_live - first) % num_live < remainder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ideal_tree_doubles_until_its_width() {
        let config = SearchConfig { width: 16, ..SearchConfig::default() };
        let mut live = vec![2];
        for _ in 0..4 {
            live.push(budget(&config, 16, 0, live[live.len() - 1]));
        }
        assert_eq!(live, [2, 4, 8, 16, 16]);
    }

    #[test]
    fn finished_paths_pass_their_budget_on() {
        let config = SearchConfig::default();
        assert_eq!(budget(&config, 12, 2, 2), 8);
        assert_eq!(budget(&config, 5, 2, 2), 5);
        assert_eq!(budget(&config, 1, 6, 2), 2, "a live path is never given up");
    }

    #[test]
    fn a_split_uses_the_whole_budget_and_is_even() {
        let stream = Stream::of_tree(3, 4);
        for round in 0..50 {
            let parts: Vec<u32> = even_split(17, 5, stream, round).collect();
            assert_eq!(parts.iter().sum::<u32>(), 17);
            assert!(parts.iter().all(|part| (3..=4).contains(part)), "{parts:?}");
        }
    }
}
