//! Plan arrays that own their memory.

use super::{PlanBuffers, PlanCapacity, PlanSizes};

/// The arrays of a plan; see [`PlanBuffers`] for shapes and meanings.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the names are those of PlanBuffers")]
pub struct PlanArrays {
    pub token_ids: Vec<i64>,
    pub positions: Vec<i64>,
    pub slot_mapping: Vec<i64>,
    pub query_starts: Vec<i32>,
    pub kv_lens: Vec<i32>,
    pub row_ids: Vec<i32>,
    pub sample_index: Vec<i64>,
    pub uniforms: Vec<f64>,
    pub copies: Vec<i32>,
    pub table_updates: Vec<i32>,
}

impl PlanArrays {
    /// Arrays of just this capacity, filled with nonsense so that an unwritten element shows.
    pub fn new(capacity: &PlanCapacity) -> Self {
        let (tokens, rows) = (capacity.num_tokens, capacity.num_rows);
        Self {
            token_ids: vec![-7; tokens],
            positions: vec![-7; tokens],
            slot_mapping: vec![-7; tokens],
            query_starts: vec![-7; rows + 1],
            kv_lens: vec![-7; rows],
            row_ids: vec![-7; rows],
            sample_index: vec![-7; capacity.num_samples],
            uniforms: vec![-7.0; capacity.num_samples],
            copies: vec![-7; 3 * capacity.num_copies],
            table_updates: vec![-7; 3 * capacity.num_table_updates],
        }
    }

    /// The arrays as the scheduler fills them.
    pub fn buffers(&mut self) -> PlanBuffers<'_> {
        PlanBuffers {
            token_ids: &mut self.token_ids,
            positions: &mut self.positions,
            slot_mapping: &mut self.slot_mapping,
            query_starts: &mut self.query_starts,
            kv_lens: &mut self.kv_lens,
            row_ids: &mut self.row_ids,
            sample_index: &mut self.sample_index,
            uniforms: &mut self.uniforms,
            copies: &mut self.copies,
            table_updates: &mut self.table_updates,
        }
    }

    /// A copy of what a plan of these sizes uses.
    #[must_use]
    pub fn used(&self, sizes: PlanSizes) -> Self {
        let (tokens, rows, samples) = (sizes.num_tokens, sizes.num_rows, sizes.num_samples);
        Self {
            token_ids: self.token_ids[..tokens].to_vec(),
            positions: self.positions[..tokens].to_vec(),
            slot_mapping: self.slot_mapping[..tokens].to_vec(),
            query_starts: self.query_starts[..=rows].to_vec(),
            kv_lens: self.kv_lens[..rows].to_vec(),
            row_ids: self.row_ids[..rows].to_vec(),
            sample_index: self.sample_index[..samples].to_vec(),
            uniforms: self.uniforms[..samples].to_vec(),
            copies: self.copies[..3 * sizes.num_copies].to_vec(),
            table_updates: self.table_updates[..3 * sizes.num_table_updates].to_vec(),
        }
    }
}
