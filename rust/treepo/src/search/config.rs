//! Configuration of the search.

use crate::error::{Error, Result};

/// Where missing leaves come from when no path of a tree lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// From a random segment boundary of a leaf that ended with an end-of-sequence token, or from
    /// the prompt if there is none.
    Answered,
    /// Nowhere: the tree ends with fewer leaves than its width.
    None,
}

/// Configuration of the search. Lengths are in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchConfig {
    /// Leaves of a tree.
    pub width: u32,
    /// Tokens of a segment at most.
    pub segment_len: u32,
    /// Segments of a path at most.
    pub max_depth: u32,
    /// Children of a live path at the end of a round, before budget transfer.
    pub branch_factor: u32,
    /// Paths that start at the prompt, at most `width`.
    pub initial_divergence: u32,
    /// Where missing leaves come from.
    pub fallback: Fallback,
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
            initial_divergence: 2,
            fallback: Fallback::Answered,
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
        let (width, initial_divergence) = (n, n);
        let (segment_len, max_depth, fallback) = (max_tokens, 1, Fallback::None);
        Self { width, segment_len, max_depth, initial_divergence, fallback, ..Self::default() }
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
