//! Configuration of the search: every rule and its numbers, as plain data.
//!
//! One shape serves Rust, files and the command line: structures of numbers and enums. A number
//! that the chosen rule does not use is ignored.

mod growth;
mod leaves;
mod range;

pub use growth::{
    BranchBy, BranchConfig, BudgetConfig, Prefer, Remainder, TemperatureSchedule, Total, Transfer,
};
pub use leaves::{
    Alignment, Boxed, FallbackAt, FallbackConfig, FallbackFrom, PruneBy, PruneConfig, PrunedLeaves,
    Refill, Repetition, StopConfig,
};

use serde::{Deserialize, Serialize};

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
}
