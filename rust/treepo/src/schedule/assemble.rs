//! Assembly of one step: who is computed, with which blocks.

use super::plan::PlanWriter;
use super::{ADMISSION_OPTIMISM, Fed, PlanBuffers, PlanSizes, Sampled, Scheduler};
use crate::error::{Error, Result, law};
use crate::ids::{PathId, TreeId};
use crate::key::Purpose;
use crate::memory::Use;

/// Which running rows a pass over them plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Rows with one token to compute.
    Decode,
    /// Rows with more.
    Prefill,
}

/// What came of a row that was to be planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// It is in the plan.
    Planned,
    /// The arrays are full; it keeps its blocks and its turn comes in a later step.
    NoArrays,
    /// There are no blocks for it.
    NoBlocks,
}

/// What a row computes: tokens `start..start + count`, of which those before `computed` are
/// resident already.
#[derive(Debug, Clone, Copy)]
struct Query {
    start: u32,
    count: u32,
    computed: u32,
    len: u32,
}

impl Query {
    fn end(&self) -> u32 {
        self.start + self.count
    }
}

impl Scheduler {
    /// Plans the next step into the caller's arrays. O(rows + tokens + table changes).
    ///
    /// # Errors
    /// `BufferTooSmall`, or `InvalidInput` if the last plan has not been committed.
    pub fn plan_step(&mut self, out: &mut PlanBuffers<'_>) -> Result<PlanSizes> {
        if self.plan.is_open {
            return Err(Error::InvalidInput("the last plan has not been committed".into()));
        }
        let capacity = self.capacity();
        out.check(&capacity)?;
        self.plan_number += 1;
        let preemptions = self.stats.preemptions;
        let mut writer = PlanWriter::new(out, capacity);
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(&self.running);
        self.plan_running(&order, Pass::Decode, &mut writer)?;
        self.plan_running(&order, Pass::Prefill, &mut writer)?;
        if self.stats.preemptions == preemptions {
            self.admit_trees();
            order.clear();
            order.extend(self.waiting.iter().take(self.free_rows.len()));
            self.plan_waiting(&order, &mut writer)?;
        }
        self.order = order;
        let sizes = writer.sizes;
        law(sizes.num_rows > 0 || self.is_done(), "S1", || {
            "work remains, the plan is empty".into()
        })?;
        self.plan.is_open = sizes.num_rows > 0;
        let resident = self.memory.pool().capacity() - self.memory.pool().num_free();
        self.stats.peak_blocks = self.stats.peak_blocks.max(u64::from(resident));
        Ok(sizes)
    }

    fn plan_running(
        &mut self,
        order: &[(TreeId, PathId)],
        pass: Pass,
        writer: &mut PlanWriter<'_, '_>,
    ) -> Result<()> {
        for &(tree, path) in order {
            let state = self.state(tree, path);
            if state.row.is_none() || state.planned == self.plan_number {
                continue;
            }
            let query = self.query(tree, path, writer.tokens_left());
            let is_decode = query.len - query.start == 1;
            if is_decode != (pass == Pass::Decode) {
                continue;
            }
            if query.count == 0 {
                return Ok(());
            }
            if self.plan_row(tree, path, query, true, writer)? == Fit::NoBlocks {
                self.preempt(tree, path);
            }
        }
        Ok(())
    }

    fn plan_waiting(
        &mut self,
        order: &[(TreeId, PathId)],
        writer: &mut PlanWriter<'_, '_>,
    ) -> Result<()> {
        for &(tree, path) in order {
            if writer.tokens_left() == 0 || self.free_rows.is_empty() {
                return Ok(());
            }
            if !self.memory.is_attached(tree, path) {
                let forest_tree = self.search.forest().tree(tree)?;
                self.memory.attach(forest_tree, tree, path)?;
            }
            self.memory.set_use(tree, path, Use::Running);
            self.waiting.remove(&(tree, path));
            self.take_row(tree, path);
            let query = self.query(tree, path, writer.tokens_left());
            if self.plan_row(tree, path, query, false, writer)? != Fit::Planned {
                self.leave_row(tree, path);
                self.memory.set_use(tree, path, Use::Waiting);
                self.waiting.insert((tree, path));
                return Ok(());
            }
        }
        Ok(())
    }

    /// Admits queued trees while rows are left for their first paths and the worst growth of all
    /// open trees fits into [`ADMISSION_OPTIMISM`] pools.
    fn admit_trees(&mut self) {
        let limit = ADMISSION_OPTIMISM * u64::from(self.memory.pool().capacity());
        while let Some(&tree) = self.queue.front() {
            let growth = self.worst_growth(tree);
            let has_rows = self.waiting.len() < self.free_rows.len();
            if self.num_open_trees > 0 && !(has_rows && self.reserved + growth <= limit) {
                return;
            }
            self.queue.pop_front();
            self.num_open_trees += 1;
            self.reserved += growth;
            self.waiting.insert((tree, PathId(0)));
        }
    }

    /// What a path has to compute. The last token is always fed, as its logits are wanted.
    fn query(&self, tree: TreeId, path: PathId, tokens_left: u32) -> Query {
        let len = self.search.forest().trees()[tree.index()].own(path).len();
        let computed = self.memory.num_computed(tree, path);
        let start = computed.min(len - 1);
        Query { start, count: (len - start).min(tokens_left), computed, len }
    }

    /// Plans one row if arrays and blocks suffice.
    fn plan_row(
        &mut self,
        tree: TreeId,
        path: PathId,
        query: Query,
        may_preempt: bool,
        writer: &mut PlanWriter<'_, '_>,
    ) -> Result<Fit> {
        let end_block = self.memory.blocks_for(query.end());
        let Some(row) = self.state(tree, path).row else { return Ok(Fit::NoBlocks) };
        let table_len = self.rows[row as usize].map_or(0, |row| row.table_len);
        if end_block - table_len.min(end_block) > writer.updates_left() {
            return Ok(Fit::NoArrays);
        }
        while self.missing_blocks(tree, path, end_block) > self.memory.pool().num_free() {
            if !self.make_room(tree, path, may_preempt)? {
                return Ok(Fit::NoBlocks);
            }
        }
        while self.memory.num_blocks(tree, path) < end_block {
            let is_pending = self.memory.has_pending_copy(tree, path);
            let grown = self.memory.grow(tree, path)?;
            let copy = grown.ok_or_else(|| Error::LawBroken {
                law: "B1",
                detail: "the pool is empty after room was made".into(),
            })?;
            match copy {
                Some(copy) => {
                    writer.push_copy(copy);
                    self.stats.block_copies += 1;
                }
                None => self.stats.block_adoptions += u64::from(is_pending),
            }
        }
        self.write_row(tree, path, row, query, writer);
        Ok(Fit::Planned)
    }

    /// Blocks to take from the pool until the path's chain has `end_block`.
    fn missing_blocks(&self, tree: TreeId, path: PathId, end_block: u32) -> u32 {
        let missing = end_block - self.memory.num_blocks(tree, path).min(end_block);
        missing - u32::from(missing > 0 && self.memory.can_adopt(tree, path))
    }

    /// Takes memory from somebody else; false if nobody has any to give.
    fn make_room(&mut self, tree: TreeId, path: PathId, may_preempt: bool) -> Result<bool> {
        if self.memory.evict_one()? {
            return Ok(true);
        }
        if !may_preempt {
            return Ok(false);
        }
        let younger = self.running.range((tree, path)..).rev();
        let is_victim = |&&(t, p): &&(TreeId, PathId)| {
            (t, p) != (tree, path) && self.state(t, p).planned != self.plan_number
        };
        let Some(&(victim_tree, victim)) = younger.clone().find(is_victim) else {
            return Ok(false);
        };
        self.preempt(victim_tree, victim);
        Ok(true)
    }

    fn preempt(&mut self, tree: TreeId, path: PathId) {
        self.leave_row(tree, path);
        self.memory.set_use(tree, path, Use::Waiting);
        self.waiting.insert((tree, path));
        self.stats.preemptions += 1;
    }

    fn write_row(
        &mut self,
        tree: TreeId,
        path: PathId,
        row: u32,
        query: Query,
        writer: &mut PlanWriter<'_, '_>,
    ) {
        self.write_table(tree, path, row, writer);
        let tokens = writer.sizes.num_tokens..writer.sizes.num_tokens + query.count as usize;
        let ids = &mut writer.out.token_ids[tokens.clone()];
        let forest_tree = &self.search.forest().trees()[tree.index()];
        forest_tree.fill_tokens(path, query.start, ids);
        for (i, position) in tokens.clone().zip(query.start..) {
            let is_resident = position < query.computed;
            writer.out.positions[i] = i64::from(position);
            writer.out.slot_mapping[i] =
                if is_resident { 0 } else { self.memory.slot(tree, path, position) };
        }
        writer.sizes.num_tokens = tokens.end;
        writer.push_row(row, query.end());
        self.plan.fed.push(Fed { tree, path, end: query.end() });
        self.count_query(tree, path, query);
        let number = self.plan_number;
        self.state_mut(tree, path).planned = number;
        if query.end() == query.len {
            self.write_samples(tree, path, query.len, writer);
        } else {
            self.stats.chunked_prefills += 1;
        }
    }

    fn write_table(
        &mut self,
        tree: TreeId,
        path: PathId,
        row: u32,
        writer: &mut PlanWriter<'_, '_>,
    ) {
        let Some(entry) = &mut self.rows[row as usize] else { return };
        let first = entry.table_len;
        entry.table_len = self.memory.num_blocks(tree, path);
        self.memory.for_each_block(tree, path, first, |index, block| {
            writer.push_table_update(row, index, block.0);
        });
    }

    /// Samples the path and its followers from the row's last token.
    fn write_samples(
        &mut self,
        tree: TreeId,
        leader: PathId,
        len: u32,
        writer: &mut PlanWriter<'_, '_>,
    ) {
        self.write_sample(tree, leader, leader, len, writer);
        let mut followers = std::mem::take(&mut self.state_mut(tree, leader).followers);
        let seated = followers.len().min(self.free_rows.len());
        for path in followers.drain(..seated) {
            self.take_row(tree, path);
            let number = self.plan_number;
            self.state_mut(tree, path).planned = number;
            self.write_sample(tree, path, leader, len, writer);
        }
        self.state_mut(tree, leader).followers = followers;
    }

    fn write_sample(
        &mut self,
        tree: TreeId,
        path: PathId,
        leader: PathId,
        len: u32,
        writer: &mut PlanWriter<'_, '_>,
    ) {
        let stream = self.search.forest().trees()[tree.index()].own(path).stream;
        writer.push_sample(stream.uniform(Purpose::Token, u64::from(len)));
        self.plan.samples.push(Sampled { tree, path, leader });
    }

    fn count_query(&mut self, tree: TreeId, path: PathId, query: Query) {
        let state = &mut self.paths[tree.index()][path.index()];
        let from = query.start.max(query.computed);
        let again = state.high_water.min(query.end()).saturating_sub(from);
        state.high_water = state.high_water.max(query.end());
        self.stats.fed_tokens += u64::from(query.count);
        self.stats.recomputed_tokens += u64::from(again);
        self.stats.refed_tokens += u64::from(query.computed.saturating_sub(query.start));
    }
}
