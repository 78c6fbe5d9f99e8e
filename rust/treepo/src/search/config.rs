//! Configuration of the search: every rule and its numbers, as plain data.
//!
//! One shape serves Rust, files and the command line: structures of numbers and enums. A number
//! that the chosen rule does not use is ignored.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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
    /// The caller's score of the path's last segment ([`Verdict`](super::Verdict)).
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
    /// `max_tokens` sampled tokens, each counted once; forks that the rest cannot pay for are not
    /// made.
    UniqueTokens,
    /// `max_tokens` as the published code counts them: a shared token once for every leaf.
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

/// Which leaves a tree may restart from when leaves are missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackFrom {
    /// None: a tree may end with fewer leaves than its width.
    Nothing,
    /// Leaves that ended with an end of sequence, in random order.
    #[default]
    Answered,
    /// All leaves that count, in random order.
    All,
    /// All leaves that count, drawn without replacement by the priority of their finish reason:
    /// stop 5, depth 4, length 3, repetition 2 (Gumbel order).
    Priority,
    /// All leaves that count, drawn without replacement by their completion's length.
    Longest,
}

/// Where a restart cuts the leaf that it starts from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackAt {
    /// A uniformly drawn segment boundary before the leaf's end.
    #[default]
    Boundary,
    /// A whole number of windows before the last one begins, uniformly drawn: a completion of
    /// length L has `T = ceil(L / window)` windows, `k` is drawn of `1..=min(T, max_windows)`, the
    /// cut is `(T - k) * window`.
    Window,
    /// Before the sampled token with the lowest log-probability.
    LowestLogprob,
    /// The start of a block of `window` tokens, drawn by softmax of minus its mean
    /// log-probability.
    UnsureBlock,
    /// As `UnsureBlock`, by softmax of plus the mean log-probability.
    SureBlock,
    /// The end of the prompt.
    Prompt,
}

/// Whether cuts fall on segment boundaries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Alignment {
    /// A cut moves down to the nearest segment boundary.
    #[default]
    Segment,
    /// A cut stays where it is.
    Token,
}

/// When missing leaves are started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refill {
    /// When no path lives.
    #[default]
    Late,
    /// In the round in which the width minus the leaves minus what the live paths can still become
    /// is positive, so that a tree does not end in small late batches.
    Early,
}

/// Where missing leaves come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FallbackConfig {
    /// Which leaves.
    pub from: FallbackFrom,
    /// Where they are cut.
    pub at: FallbackAt,
    /// Tokens of a window or block; `segment_len` if not given.
    pub window: Option<u32>,
    /// Windows that `Window` goes back at most; all if not given.
    pub max_windows: Option<u32>,
    /// Whether cuts fall on segment boundaries.
    pub alignment: Alignment,
    /// When missing leaves are started.
    pub refill: Refill,
    /// Forks of each restart; `branch_factor` if not given.
    pub copies: Option<u32>,
}

/// What a complete `\boxed{..}` in the text does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boxed {
    /// Nothing.
    #[default]
    Ignored,
    /// The token that closes it ends the path as a stop.
    Stops,
}

/// What repetition is looked for in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repetition {
    /// Nothing.
    #[default]
    Ignored,
    /// Token ids.
    Tokens,
    /// Bytes of the text.
    Bytes,
}

/// What ends a path besides an end of sequence, length and depth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StopConfig {
    /// The token that completes one of these ends the path as a stop, wherever tokens and segments
    /// cut it.
    pub strings: Vec<String>,
    /// What a boxed answer does.
    pub boxed: Boxed,
    /// What repetition is looked for in, at the end of each segment, over the whole completion.
    pub repetition: Repetition,
    /// Length of the piece that repeats, in tokens or bytes.
    pub repetition_len: u32,
    /// Occurrences, overlapping ones included, that end the path.
    pub repetition_count: u32,
    /// Tokens from the path's end that are looked at.
    pub repetition_window: u32,
}

impl Default for StopConfig {
    fn default() -> Self {
        Self {
            strings: Vec::new(),
            boxed: Boxed::Ignored,
            repetition: Repetition::Ignored,
            repetition_len: 32,
            repetition_count: 8,
            repetition_window: 1024,
        }
    }
}

/// What a path's confidence is measured by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PruneBy {
    /// Nothing is pruned by the search.
    #[default]
    Nothing,
    /// Mean log-probability of the last `window` sampled tokens.
    Logprob,
    /// Minus the mean entropy of the last `window` sampled tokens.
    Entropy,
    /// The caller's score of the last segment.
    Score,
}

/// Whether pruned leaves count towards the width.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrunedLeaves {
    /// They do: the tree ends with fewer leaves that can be rewarded.
    #[default]
    Count,
    /// They do not: the tree grows others. From the `width`-th on they count nevertheless, so that
    /// a tree ends.
    AreReplaced,
}

/// Giving up on paths: windowed confidence after `DeepConf` (arXiv 2508.15260).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PruneConfig {
    /// What confidence is.
    pub by: PruneBy,
    /// Tokens of a confidence window. Confidence is looked at where the completion's length is a
    /// multiple of it.
    pub window: u32,
    /// A path is pruned below this confidence.
    pub threshold: f32,
    /// With more than 0, the threshold comes from the tree's own first leaves, this many: the
    /// quantile `warmup_quantile` of their lowest confidences, and `threshold` is ignored.
    pub warmup_leaves: u32,
    /// From 0 to 1; 0.1 prunes what is less confident than nine of ten.
    pub warmup_quantile: f32,
    /// Whether pruned leaves count.
    pub leaves: PrunedLeaves,
}

impl Default for PruneConfig {
    fn default() -> Self {
        Self {
            by: PruneBy::Nothing,
            window: 64,
            threshold: f32::MIN,
            warmup_leaves: 0,
            warmup_quantile: 0.1,
            leaves: PrunedLeaves::Count,
        }
    }
}

/// Whether the caller judges segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdicts {
    /// It does not.
    #[default]
    Nothing,
    /// Each path that goes on waits at the end of its segment for the caller's verdict.
    Segments,
}

/// Rules that look across trees. They make a tree not replayable (outside law S4) and are off in
/// every preset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opportunistic {
    /// None.
    #[default]
    Off,
    /// The live paths of all open trees share `step_tokens` tokens a segment: a tree has at most
    /// `step_tokens / open trees / segment_len` live paths, without transfer.
    StepTokens,
}

/// Configuration of the search. Lengths are in tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// Leaves of a tree.
    pub width: u32,
    /// Tokens of a segment at most.
    pub segment_len: u32,
    /// Segments of a path at most.
    pub max_depth: u32,
    /// Children of a live path at the end of a round, before budget transfer.
    pub branch_factor: u32,
    /// With this, the factor of each round is drawn of `branch_factor..=max_branch_factor`.
    pub max_branch_factor: Option<u32>,
    /// Paths that start at the prompt, at most `width`.
    pub initial_divergence: u32,
    /// With this, they are drawn of `initial_divergence..=max_initial_divergence`.
    pub max_initial_divergence: Option<u32>,
    /// How live paths share the budget.
    pub branch: BranchConfig,
    /// How much a tree grows.
    pub budget: BudgetConfig,
    /// Where missing leaves come from.
    pub fallback: FallbackConfig,
    /// What ends a path.
    pub stop: StopConfig,
    /// What is given up.
    pub prune: PruneConfig,
    /// Whether the caller judges segments.
    pub verdicts: Verdicts,
    /// Rules that look across trees.
    pub opportunistic: Opportunistic,
    /// Tokens a segment that the live paths of all trees share, for [`Opportunistic::StepTokens`].
    pub step_tokens: u32,
    /// How far the training is, from 0 to 1, for [`TemperatureSchedule`].
    pub progress: f32,
    /// Tokens of a completion at most; `segment_len * max_depth` if not given.
    pub max_completion_len: Option<u32>,
    /// Tokens of prompt and completion together at most.
    pub max_model_len: u32,
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            width: 8,
            segment_len: 64,
            max_depth: 8,
            branch_factor: 2,
            max_branch_factor: None,
            initial_divergence: 2,
            max_initial_divergence: None,
            branch: BranchConfig::default(),
            budget: BudgetConfig::default(),
            fallback: FallbackConfig::default(),
            stop: StopConfig::default(),
            prune: PruneConfig::default(),
            verdicts: Verdicts::Nothing,
            opportunistic: Opportunistic::Off,
            step_tokens: 8192,
            progress: 0.0,
            max_completion_len: None,
            max_model_len: u32::MAX,
            eos_token_ids: Vec::new(),
        }
    }
}

impl SearchConfig {
    /// A flat rollout: `n` independent completions of up to `max_tokens` tokens, as a forest whose
    /// forks are all at the prompt.
    pub fn flat(n: u32, max_tokens: u32) -> Self {
        let fallback = FallbackConfig { from: FallbackFrom::Nothing, ..FallbackConfig::default() };
        Self {
            width: n,
            segment_len: max_tokens,
            max_depth: 1,
            branch_factor: 1,
            initial_divergence: n,
            fallback,
            ..Self::default()
        }
    }

    /// Paths that a tree has at most.
    pub fn max_paths(&self) -> u32 {
        match self.prune.leaves {
            PrunedLeaves::Count => self.width,
            PrunedLeaves::AreReplaced => self.width.saturating_mul(2),
        }
    }

    /// Tokens of a completion at most.
    pub fn max_completion_len(&self) -> u32 {
        let by_depth = self.segment_len.saturating_mul(self.max_depth);
        self.max_completion_len.map_or(by_depth, |len| len.min(by_depth))
    }

    /// # Errors
    /// `InvalidConfig` naming the first field that is out of range.
    pub fn check(&self) -> Result<()> {
        let at_least_one = [
            ("width", self.width),
            ("segment_len", self.segment_len),
            ("max_depth", self.max_depth),
            ("branch_factor", self.branch_factor),
            ("initial_divergence", self.initial_divergence),
            ("max_completion_len", self.max_completion_len.unwrap_or(1)),
            ("max_model_len", self.max_model_len),
        ];
        for (field, value) in at_least_one {
            if value < 1 {
                let message = format!("must be at least 1, got {value}");
                return Err(Error::InvalidConfig { field, message });
            }
        }
        Ok(())
    }
}
