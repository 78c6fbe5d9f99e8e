//! The arrays of one step. The caller allocates them; the scheduler fills them.

use crate::error::{Error, Result};
use crate::memory::BlockCopy;

/// Elements that each plan array needs at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanCapacity {
    /// Rows of a step.
    pub num_rows: usize,
    /// Tokens of a step.
    pub num_tokens: usize,
    /// Sampled tokens of a step.
    pub num_samples: usize,
    /// Block copies of a step.
    pub num_copies: usize,
    /// Changes of block tables in a step.
    pub num_table_updates: usize,
}

/// Elements that a plan uses of each array. All are 0 when no work is left, or
/// when all that is left waits for the caller's verdicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlanSizes {
    /// Rows: paths that are computed in this step.
    pub num_rows: usize,
    /// Tokens of all rows.
    pub num_tokens: usize,
    /// Sampled tokens.
    pub num_samples: usize,
    /// Block copies.
    pub num_copies: usize,
    /// Changes of block tables.
    pub num_table_updates: usize,
}

/// The arrays of one step, allocated by the caller. A plan is valid until its commit.
///
/// Order of execution: apply `table_updates`, do `copies` (all sources are read before any
/// destination is written), run the forward pass, sample.
#[derive(Debug)]
pub struct PlanBuffers<'a> {
    /// `[num_tokens]` token ids of all rows, row after row.
    pub token_ids: &'a mut [i64],
    /// `[num_tokens]` their positions.
    pub positions: &'a mut [i64],
    /// `[num_tokens]` where key and value of each token go: block * `block_size` + offset. Slot 0,
    /// of the reserved block, takes those of a token whose own are resident already.
    pub slot_mapping: &'a mut [i64],
    /// `[num_rows + 1]` first token of each row, then the number of tokens.
    pub query_starts: &'a mut [i32],
    /// `[num_rows]` tokens that each row attends to, its own included.
    pub kv_lens: &'a mut [i32],
    /// `[num_rows]` the block table of each row.
    pub row_ids: &'a mut [i32],
    /// `[num_samples]` the token whose logits are sampled, ascending; paths that have just forked
    /// share one.
    pub sample_index: &'a mut [i64],
    /// `[num_samples]` a uniform number in [0, 1) for each sampled token.
    pub uniforms: &'a mut [f64],
    /// `[num_copies, 3]` source block, destination block, number of slots.
    pub copies: &'a mut [i32],
    /// `[num_table_updates, 3]` row id, logical index, block.
    pub table_updates: &'a mut [i32],
}

impl PlanBuffers<'_> {
    pub(super) fn check(&self, capacity: &PlanCapacity) -> Result<()> {
        let lengths = [
            ("token_ids", self.token_ids.len(), capacity.num_tokens),
            ("positions", self.positions.len(), capacity.num_tokens),
            ("slot_mapping", self.slot_mapping.len(), capacity.num_tokens),
            ("query_starts", self.query_starts.len(), capacity.num_rows + 1),
            ("kv_lens", self.kv_lens.len(), capacity.num_rows),
            ("row_ids", self.row_ids.len(), capacity.num_rows),
            ("sample_index", self.sample_index.len(), capacity.num_samples),
            ("uniforms", self.uniforms.len(), capacity.num_samples),
            ("copies", self.copies.len(), 3 * capacity.num_copies),
            ("table_updates", self.table_updates.len(), 3 * capacity.num_table_updates),
        ];
        for (array, given, needed) in lengths {
            if given < needed {
                return Err(Error::BufferTooSmall { array, needed, given });
            }
        }
        Ok(())
    }
}

/// Appends to the caller's arrays.
#[derive(Debug)]
pub(super) struct PlanWriter<'a, 'b> {
    pub(super) out: &'a mut PlanBuffers<'b>,
    pub(super) sizes: PlanSizes,
    pub(super) capacity: PlanCapacity,
}

impl<'a, 'b> PlanWriter<'a, 'b> {
    pub(super) fn new(out: &'a mut PlanBuffers<'b>, capacity: PlanCapacity) -> Self {
        out.query_starts[0] = 0;
        Self { out, sizes: PlanSizes::default(), capacity }
    }

    /// Tokens that the step still has room for.
    pub(super) fn tokens_left(&self) -> u32 {
        (self.capacity.num_tokens - self.sizes.num_tokens) as u32
    }

    /// Table updates that the step still has room for.
    pub(super) fn updates_left(&self) -> u32 {
        (self.capacity.num_table_updates - self.sizes.num_table_updates) as u32
    }

    /// Closes a row over the tokens appended since the last row.
    pub(super) fn push_row(&mut self, row: u32, kv_len: u32) {
        let n = self.sizes.num_rows;
        self.out.row_ids[n] = row as i32;
        self.out.kv_lens[n] = kv_len as i32;
        self.out.query_starts[n + 1] = self.sizes.num_tokens as i32;
        self.sizes.num_rows += 1;
    }

    /// Samples from the last token appended.
    pub(super) fn push_sample(&mut self, uniform: f64) {
        let n = self.sizes.num_samples;
        self.out.sample_index[n] = self.sizes.num_tokens as i64 - 1;
        self.out.uniforms[n] = uniform;
        self.sizes.num_samples += 1;
    }

    pub(super) fn push_copy(&mut self, copy: BlockCopy) {
        let values = [copy.from.0, copy.to.0, copy.num_slots].map(|value| value as i32);
        self.out.copies[3 * self.sizes.num_copies..][..3].copy_from_slice(&values);
        self.sizes.num_copies += 1;
    }

    pub(super) fn push_table_update(&mut self, row: u32, index: u32, block: u32) {
        let values = [row, index, block].map(|value| value as i32);
        self.out.table_updates[3 * self.sizes.num_table_updates..][..3].copy_from_slice(&values);
        self.sizes.num_table_updates += 1;
    }
}
