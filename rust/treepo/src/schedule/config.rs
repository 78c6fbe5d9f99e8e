//! Limits of the scheduler.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Rows or tokens of a step at most: plan arrays count in 32 bits.
const MAX_COUNT: u32 = 1 << 26;

/// Limits of the scheduler, and how it orders trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// Blocks of the pool, the reserved block 0 included.
    pub num_blocks: u32,
    /// Tokens of a block.
    pub block_size: u32,
    /// Rows of a step at most.
    pub max_num_seqs: u32,
    /// Tokens of a step at most.
    pub max_num_batched_tokens: u32,
    /// Optimism of admission in percent of the pool: trees are admitted until the worst growth of
    /// all open trees fills this much of it. 100 preempts only where one tree alone outgrows the
    /// pool, and leaves it half empty, as most paths end early; more admits more trees at the risk of
    /// computing again.
    pub admission_percent: u32,
    /// What being old is worth, in sampled tokens. A path that waits for a row comes before those
    /// of trees that have had more tokens sampled; each tree that came before it counts as this
    /// many tokens more. `u32::MAX` finishes old trees first, 0 is fair to all.
    pub age_bias: u32,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_blocks: 1024,
            block_size: 16,
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            admission_percent: 200,
            age_bias: 32,
        }
    }
}

impl SchedulerConfig {
    pub(super) fn check(&self) -> Result<()> {
        let values = [
            ("block_size", self.block_size),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
        ];
        for (field, value) in values {
            if !(1..=MAX_COUNT).contains(&value) {
                let message = format!("must be 1 to {MAX_COUNT}, got {value}");
                return Err(Error::InvalidConfig { field, message });
            }
        }
        Ok(())
    }
}
