//! Configuration of how a tree grows: branching and budget.

use serde::{Deserialize, Serialize};

/// What the live paths of a tree are weighted by when they branch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BranchBy {
    /// Every live path gets the same share.
    #[default]
    Even,
    /// Sum of the log-probabilities of the path's sampled tokens.
    PathLogprob,
    /// Mean of the log-probabilities of the path's sampled tokens.
    MeanLogprob,
    /// Mean of the log-probabilities of the path's last segment.
    SegmentLogprob,
    /// Mean of the full-vocabulary entropies of the path's last segment.
    SegmentEntropy,
    /// The caller's score of the path's last segment ([`Verdict`](crate::search::Verdict)).
    Score,
    /// No share: forks leave the tokens of the round with the largest surprisal `-logprob`, the
    /// `num_positions` largest of each path's segment, `copies` each (`EPTree`, arXiv 2506.11902).
    TokenSurprisal,
    /// As `TokenSurprisal`, by full-vocabulary entropy.
    TokenEntropy,
    /// Forks leave the first `num_positions` tokens of each path's segment whose entropy is
    /// above `threshold`, `copies` each.
    TokenEntropyAbove,
}

/// Which end of a weighting gets more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prefer {
    /// Small values: unlikely paths explore.
    #[default]
    Low,
    /// Large values.
    High,
}

/// Who gets what is left when the budget cannot be split evenly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remainder {
    /// Neighbours from a keyed random place on, so that no path is preferred.
    #[default]
    Drawn,
    /// The last path, as the published script of `TreePO` does.
    Last,
}

/// How a temperature moves from `temperature` to `final_temperature` with the training's progress.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemperatureSchedule {
    /// It stays at `temperature`.
    #[default]
    Constant,
    /// In a straight line.
    Linear,
    /// `(a + b) / 2 + (b - a) / 2 * sin(pi * progress - pi / 2)`.
    Sinusoid,
}

/// How the branching budget is split over the live paths of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BranchConfig {
    /// The rule.
    pub by: BranchBy,
    /// Which end of the weights gets more.
    pub prefer: Prefer,
    /// Temperature of the softmax over the weights; above 0.
    pub temperature: f32,
    /// Where the schedule ends.
    pub final_temperature: f32,
    /// How the temperature moves.
    pub schedule: TemperatureSchedule,
    /// Who gets the remainder of an even split.
    pub remainder: Remainder,
    /// Positions of a segment that are forked by the token rules.
    pub num_positions: u32,
    /// Forks of each such position.
    pub copies: u32,
    /// Entropy in nats above which `TokenEntropyAbove` forks.
    pub threshold: f32,
}

impl Default for BranchConfig {
    fn default() -> Self {
        Self {
            by: BranchBy::Even,
            prefer: Prefer::Low,
            temperature: 1.0,
            final_temperature: 1.0,
            schedule: TemperatureSchedule::Constant,
            remainder: Remainder::Drawn,
            num_positions: 2,
            copies: 1,
            threshold: 1.0,
        }
    }
}

/// Whether paths that have just finished pass their forks on to their living siblings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transfer {
    /// They do.
    #[default]
    On,
    /// Their forks are lost.
    Off,
}

/// What limits a whole tree, besides its width.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Total {
    /// Nothing: a tree has `width` leaves.
    #[default]
    Trajectories,
    /// `max_tokens` sampled tokens, each counted once: forks are made as long as a segment of each
    /// path is paid for. Live paths go on beyond the total.
    UniqueTokens,
    /// `max_tokens` as the published code counts them: the whole completions of leaves.
    PublishedTokens,
}

/// How much a tree may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    /// Whether finished paths pass their forks on.
    pub transfer: Transfer,
    /// What limits the tree.
    pub total: Total,
    /// Sampled tokens of a tree for the token totals; at least `segment_len`.
    pub max_tokens: u32,
    /// Leaves that a tree gets in spite of a token total.
    pub min_width: u32,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            transfer: Transfer::On,
            total: Total::Trajectories,
            max_tokens: u32::MAX,
            min_width: 1,
        }
    }
}
