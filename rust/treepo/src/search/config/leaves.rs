//! Configuration of how a tree gets its leaves: what ends paths, what gives them up, and where
//! missing ones come from.

use serde::{Deserialize, Serialize};

/// Which leaves a tree may restart from when leaves are missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackFrom {
    /// None: a tree may end with fewer leaves than its width.
    Nothing,
    /// Leaves that stopped by themselves ([`FinishReason::Stop`](crate::FinishReason)), in random
    /// order.
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

impl FallbackConfig {
    /// Whether leaves are never cut behind their last segment boundary.
    pub(crate) fn cuts_at_boundaries(&self) -> bool {
        self.alignment == Alignment::Segment
            || matches!(self.at, FallbackAt::Boundary | FallbackAt::Prompt)
    }
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
    /// What repetition is looked for in, at the end of each segment, over the last
    /// `repetition_window` tokens.
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
