//! How many paths of a tree may live: the budget of a round and of the whole tree.

use serde::{Deserialize, Serialize};

use super::state::TreeState;
use super::{BranchBy, Opportunistic, SearchConfig, Total, Transfer};
use crate::key::{Purpose, Stream};

/// Tokens of a tree, kept up to date token by token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tokens {
    /// Sampled tokens, each counted once.
    pub(super) unique: u64,
    /// Completion lengths of all paths together.
    pub(super) published: u64,
    /// Completion lengths of the live paths together.
    pub(super) live: u64,
}

impl Tokens {
    /// Counts one sampled token of a live path.
    pub(super) fn push(&mut self) {
        self.unique += 1;
        self.published += 1;
        self.live += 1;
    }

    /// Counts a new live path that shares this much of a completion.
    pub(super) fn fork(&mut self, completion_len: u32) {
        self.published += u64::from(completion_len);
        self.live += u64::from(completion_len);
    }

    /// Counts a path that no longer lives.
    pub(super) fn finish(&mut self, completion_len: u32) {
        self.live -= u64::from(completion_len);
    }
}

/// Leaves that the tree may have: its width, less what a token total cannot pay for. O(1).
///
/// With F leaves, A live paths and segments of l tokens:
/// * `UniqueTokens`: `F + A + floor((max_tokens - unique - A l) / l)`;
/// * `PublishedTokens`: `F + floor((max_tokens - published) / (mean live completion + l))`, or
///   with the mean finished completion in the divisor where no path lives;
///
/// within `min_width..=width`. It may be less than `F + A`: no live path is given up.
pub(super) fn width(config: &SearchConfig, state: &TreeState) -> u32 {
    let budget = &config.budget;
    let (leaves, live) = (u64::from(state.num_leaves), state.live.len() as u64);
    let (segment_len, max_tokens) = (u64::from(config.segment_len), u64::from(budget.max_tokens));
    let affordable = match budget.total {
        Total::Trajectories => return config.width,
        Total::UniqueTokens => {
            let promised = state.tokens.unique + live * segment_len;
            leaves + live + max_tokens.saturating_sub(promised) / segment_len
        }
        Total::PublishedTokens => {
            let of_leaves = state.tokens.published - state.tokens.live;
            let rest = max_tokens.saturating_sub(of_leaves);
            let num_finished = state.paths.len() as u64 - live;
            let (paths, tokens) = match live {
                0 => (num_finished, state.tokens.published),
                _ => (live, state.tokens.live + live * segment_len),
            };
            let count = u128::from(rest) * u128::from(paths) / u128::from(tokens.max(1));
            leaves + u64::try_from(count).unwrap_or(u64::MAX / 2)
        }
    };
    let affordable = u32::try_from(affordable).unwrap_or(u32::MAX);
    affordable.max(budget.min_width).min(config.width)
}

/// Live paths that the tree may have by [`Opportunistic::StepTokens`], at least one.
pub(super) fn share(config: &SearchConfig, num_open_trees: u32) -> u32 {
    match config.opportunistic {
        Opportunistic::Off => u32::MAX,
        Opportunistic::StepTokens => {
            (config.step_tokens / num_open_trees.max(1) / config.segment_len).max(1)
        }
    }
}

/// A number of `low..=high`, keyed; `low` where there is no `high`.
pub(super) fn draw(
    low: u32,
    high: Option<u32>,
    stream: Stream,
    purpose: Purpose,
    counter: u32,
) -> u32 {
    let span = high.map_or(0, |high| high.saturating_sub(low));
    let drawn = if span == 0 {
        0
    } else {
        stream.below(purpose, u64::from(counter), span.saturating_add(1))
    };
    low.saturating_add(drawn)
}

/// The branch factor of a round.
pub(super) fn factor(config: &SearchConfig, stream: Stream, round: u32) -> u32 {
    draw(config.branch_factor, config.max_branch_factor, stream, Purpose::BranchFactor, round)
}

/// Paths that live after the round: every live path keeps one; beyond that the tree has `factor`
/// for each live path and, by budget transfer, for each path that finished in the round, but never
/// more than its missing leaves and than its share of the step.
///
/// `TreePO`: `total = max(A, min(W - F, N f + N A))`; without transfer there is no f.
pub(super) fn total(
    config: &SearchConfig,
    factor: u32,
    missing: u32,
    num_finished: u32,
    num_live: u32,
    share: u32,
) -> u32 {
    let shares = config.opportunistic == Opportunistic::StepTokens;
    let donors = match config.budget.transfer {
        Transfer::On if !shares => num_finished,
        _ => 0,
    };
    let wanted = factor.saturating_mul(donors.saturating_add(num_live));
    wanted.min(missing).min(share).max(num_live)
}

/// Leaves that live paths of these depths can still become without fallback and transfer: each
/// multiplies by its growth at the end of each round before its last. Saturates.
pub(super) fn potential(config: &SearchConfig, rounds_left: impl Iterator<Item = u32>) -> u32 {
    let branch = &config.branch;
    let growth = match branch.by {
        BranchBy::TokenSurprisal | BranchBy::TokenEntropy | BranchBy::TokenEntropyAbove => {
            branch.num_positions.saturating_mul(branch.copies).saturating_add(1)
        }
        _ => config.max_branch_factor.unwrap_or(config.branch_factor),
    };
    let leaves = |rounds: u32| growth.saturating_pow(rounds);
    rounds_left.map(leaves).fold(0, u32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PathId;
    use crate::search::BudgetConfig;
    use crate::search::state::PathState;

    fn published(num_leaves: u32, live: u32, tokens: Tokens) -> TreeState {
        let mut state = TreeState::new(&SearchConfig::default(), 1, u32::MAX);
        state.paths = vec![PathState::default(); (num_leaves + live) as usize];
        state.live = (num_leaves..num_leaves + live).map(PathId).collect();
        TreeState { num_leaves, tokens, ..state }
    }

    fn config(total: Total, max_tokens: u32) -> SearchConfig {
        SearchConfig {
            width: 16,
            segment_len: 10,
            budget: BudgetConfig { total, max_tokens, ..BudgetConfig::default() },
            ..SearchConfig::default()
        }
    }

    #[test]
    fn the_ideal_tree_doubles_until_its_width() {
        let config = SearchConfig { width: 16, ..SearchConfig::default() };
        let mut live = vec![2];
        for _ in 0..4 {
            live.push(total(&config, 2, 16, 0, live[live.len() - 1], u32::MAX));
        }
        assert_eq!(live, [2, 4, 8, 16, 16]);
    }

    #[test]
    fn finished_paths_pass_their_budget_on() {
        let mut config = SearchConfig::default();
        let total_of =
            |config: &SearchConfig, missing, f, live| total(config, 2, missing, f, live, u32::MAX);
        assert_eq!(total_of(&config, 12, 2, 2), 8);
        assert_eq!(total_of(&config, 5, 2, 2), 5);
        assert_eq!(total_of(&config, 1, 6, 2), 2, "a live path is never given up");
        config.budget.transfer = Transfer::Off;
        assert_eq!(total_of(&config, 12, 2, 2), 4);
    }

    #[test]
    fn a_share_of_the_step_limits_the_live_paths_without_transfer() {
        let config = SearchConfig {
            segment_len: 10,
            step_tokens: 120,
            opportunistic: Opportunistic::StepTokens,
            ..SearchConfig::default()
        };
        assert_eq!([1, 2, 3, 100].map(|open| share(&config, open)), [12, 6, 4, 1]);
        assert_eq!(total(&config, 2, 12, 2, 2, 3), 3);
        assert_eq!(total(&config, 2, 12, 2, 2, 9), 4, "no transfer");
        assert_eq!(total(&config, 2, 12, 2, 4, 3), 4, "a live path is never given up");
    }

    #[test]
    fn unique_and_published_totals_follow_their_formulas() {
        // two leaves of 30 and 20 tokens, 3 live paths of 30, of which 80 tokens are unique
        let tokens = Tokens { unique: 80, published: 140, live: 90 };
        let state = published(2, 3, tokens);
        // 2 + 3 + floor((155 - 80 - 30) / 10) = 9
        assert_eq!(width(&config(Total::UniqueTokens, 155), &state), 9);
        // 2 + floor((310 - (140 - 90)) / (30 + 10)) = 8: the published code counts leaves alone
        assert_eq!(width(&config(Total::PublishedTokens, 310), &state), 8);
        assert_eq!(width(&config(Total::Trajectories, 10), &state), 16);
        assert_eq!(width(&config(Total::UniqueTokens, 20), &state), 5, "nothing is left to spend");
        assert_eq!(width(&config(Total::UniqueTokens, 9000), &state), 16);
    }

    #[test]
    fn without_live_paths_the_published_total_uses_the_mean_leaf() {
        let state = published(2, 0, Tokens { unique: 40, published: 50, live: 0 });
        // 2 + floor((150 - 50) / 25) = 6
        assert_eq!(width(&config(Total::PublishedTokens, 150), &state), 6);
        let mut config = config(Total::PublishedTokens, 10);
        assert_eq!(width(&config, &state), 2);
        config.budget.min_width = 5;
        assert_eq!(width(&config, &state), 5);
    }

    #[test]
    fn a_drawn_number_reaches_both_ends_and_a_fixed_one_stays() {
        let stream = Stream::of_tree(1, 2);
        let drawn: Vec<u32> =
            (0..100).map(|i| draw(2, Some(8), stream, Purpose::BranchFactor, i)).collect();
        assert_eq!((drawn.iter().min(), drawn.iter().max()), (Some(&2), Some(&8)));
        assert_eq!(draw(3, None, stream, Purpose::BranchFactor, 0), 3);
        assert_eq!(draw(3, Some(3), stream, Purpose::BranchFactor, 0), 3);
    }

    #[test]
    fn potential_multiplies_by_round_and_saturates() {
        let mut config = SearchConfig { max_depth: 4, ..SearchConfig::default() };
        assert_eq!(potential(&config, [3, 1].into_iter()), 8 + 2);
        assert_eq!(potential(&config, [999, 1].into_iter()), u32::MAX);
        config.max_branch_factor = Some(3);
        assert_eq!(potential(&config, [3, 1].into_iter()), 27 + 3);
        (config.branch_factor, config.max_branch_factor) = (1, None);
        assert_eq!(potential(&config, [999, 1].into_iter()), 2);
    }
}
