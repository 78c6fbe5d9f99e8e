//! Assembly of one step: who is computed, with which blocks.

use super::plan::PlanWriter;
use super::{Fed, Place, PlanBuffers, PlanSizes, Sampled, Scheduler};
use crate::error::{Error, Result, law};
use crate::ids::{PathId, TreeId};
use crate::key::Purpose;
use crate::memory::{Claim, Growth, Rank, Use};

/// Waiting paths without blocks that a plan passes over: more important ones may come behind them.
const MAX_SKIPPED: usize = 8;

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
    /// Another row computes what it needs first.
    IsBehind,
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
    /// An empty plan says that no work is left, or that all that is left waits for the caller's
    /// verdicts.
    ///
    /// # Errors
    /// `BufferTooSmall`, or `InvalidInput` if the last plan has not been committed.
    pub fn plan_step(&mut self, out: &mut PlanBuffers<'_>) -> Result<PlanSizes> {
        self.check_no_plan("planning the next step")?;
        let capacity = self.capacity();
        out.check(&capacity)?;
        self.plan_number += 1;
        let preemptions = self.stats.preemptions;
        let mut writer = PlanWriter::new(out, capacity);
        self.sweep_running();
        self.plan.num_victims = self.orders.running.len();
        self.plan.is_for_waiting = false;
        if self.plan_running(Pass::Decode, &mut writer)? {
            self.plan_running(Pass::Prefill, &mut writer)?;
        }
        if self.stats.preemptions == preemptions || writer.sizes.num_rows == 0 {
            self.admit_trees();
            self.plan_waiting(&mut writer)?;
        }
        let sizes = writer.sizes;
        law(sizes.num_rows > 0 || self.is_done() || self.search.awaits_verdicts(), "S1", || {
            "work remains, the plan is empty".into()
        })?;
        self.plan.is_open = sizes.num_rows > 0;
        self.count_plan();
        Ok(sizes)
    }

    /// Plans the running rows of a pass, important ones first. Returns whether there are others.
    fn plan_running(&mut self, pass: Pass, writer: &mut PlanWriter<'_, '_>) -> Result<bool> {
        let mut has_others = false;
        for i in 0..self.orders.running.len() {
            let Rank { tree, path, .. } = self.orders.running[i];
            let state = self.state(tree, path);
            if state.row.is_none() || state.planned == self.plan_number {
                continue;
            }
            let query = self.query(tree, path, writer.tokens_left());
            let is_decode = query.len - query.start == 1;
            if is_decode != (pass == Pass::Decode) {
                has_others = true;
                continue;
            }
            if query.count == 0 {
                break;
            }
            if self.plan_row(tree, path, query, writer)? == Fit::NoBlocks {
                self.preempt(tree, path);
            }
        }
        Ok(has_others)
    }

    fn plan_waiting(&mut self, writer: &mut PlanWriter<'_, '_>) -> Result<()> {
        self.plan.num_victims = 0;
        self.plan.is_for_waiting = true;
        let mut skipped = std::mem::take(&mut self.plan.skipped);
        while writer.tokens_left() > 0 && !self.rows.free.is_empty() {
            let Some((tree, path)) = self.next_waiting() else { break };
            let fit = self.plan_next(tree, path, writer)?;
            if fit == Fit::Planned || fit == Fit::IsBehind {
                continue;
            }
            self.leave_row(tree, path);
            self.memory.set_use(tree, path, Use::Waiting);
            skipped.push((tree, path));
            if fit == Fit::NoArrays || skipped.len() == MAX_SKIPPED {
                break;
            }
        }
        while let Some((tree, path)) = skipped.pop() {
            self.wait(tree, path);
        }
        self.plan.skipped = skipped;
        Ok(())
    }

    /// Plans a path that has waited for a row.
    fn plan_next(
        &mut self,
        tree: TreeId,
        path: PathId,
        writer: &mut PlanWriter<'_, '_>,
    ) -> Result<Fit> {
        if self.lacks_memory(tree, path) {
            self.attach(tree, path, None)?;
            if self.queue_behind(tree, path) {
                return Ok(Fit::IsBehind);
            }
        }
        self.take_row(tree, path);
        let query = self.query(tree, path, writer.tokens_left());
        self.plan_row(tree, path, query, writer)
    }

    /// Gives the path what others have resident of its tokens: `source`, which it has just left,
    /// other relatives, or other trees with the same prompt.
    pub(super) fn attach(
        &mut self,
        tree: TreeId,
        path: PathId,
        source: Option<PathId>,
    ) -> Result<()> {
        let shared = self.memory.attach(self.search.forest(), tree, path, source)?;
        self.stats.shared_prefix_tokens += u64::from(shared);
        Ok(())
    }

    /// Whether somebody else may have tokens resident that the path has to compute.
    fn lacks_memory(&self, tree: TreeId, path: PathId) -> bool {
        let own_tree = &self.search.forest().trees()[tree.index()];
        let own = own_tree.own(path);
        let computed = self.memory.computed(tree, path);
        computed < own.at.max(own_tree.prompt_len) || computed + 1 < own.len()
    }

    /// What a path has to compute. The last token is always fed, as its logits are wanted.
    fn query(&self, tree: TreeId, path: PathId, tokens_left: u32) -> Query {
        let len = self.search.forest().trees()[tree.index()].own(path).len();
        let computed = self.memory.computed(tree, path);
        let start = computed.min(len - 1);
        Query { start, count: (len - start).min(tokens_left), computed, len }
    }

    /// Plans one row if arrays and blocks suffice.
    fn plan_row(
        &mut self,
        tree: TreeId,
        path: PathId,
        query: Query,
        writer: &mut PlanWriter<'_, '_>,
    ) -> Result<Fit> {
        let end_block = self.memory.blocks_for(query.end());
        let Some(row) = self.state(tree, path).row else { return Ok(Fit::NoBlocks) };
        let table_len = self.rows.taken[row as usize].map_or(0, |row| row.table_len);
        if end_block - table_len.min(end_block) > writer.updates_left() {
            return Ok(Fit::NoArrays);
        }
        while self.memory.missing_blocks(tree, path, end_block) > self.memory.pool().num_free() {
            let nothing_runs = self.plan.is_for_waiting && writer.sizes.num_rows == 0;
            if !self.make_room(self.memory.rank(tree, path), nothing_runs)? {
                return Ok(Fit::NoBlocks);
            }
        }
        while self.memory.num_blocks(tree, path) < end_block {
            match self.memory.grow(tree, path)? {
                Some(Growth::Fresh) => {}
                Some(Growth::Adopted) => self.stats.block_adoptions += 1,
                Some(Growth::Copied(copy)) => {
                    writer.push_copy(copy);
                    self.stats.block_copies += 1;
                }
                None => {
                    let detail = "the pool is empty after room was made".into();
                    return Err(Error::LawBroken { law: "B1", detail });
                }
            }
        }
        self.write_row(tree, path, row, query, writer);
        Ok(Fit::Planned)
    }

    /// Takes memory from somebody less important: from idle paths, then from running ones. Where
    /// nothing runs, from anybody. False if nobody has any to give.
    fn make_room(&mut self, rank: Rank, nothing_runs: bool) -> Result<bool> {
        if self.memory.evict_one(Claim::Over(rank))? {
            return Ok(true);
        }
        while self.plan.num_victims > 0 {
            let victim = self.orders.running[self.plan.num_victims - 1];
            if victim <= rank {
                break;
            }
            self.plan.num_victims -= 1;
            let state = self.state(victim.tree, victim.path);
            if state.row.is_some() && state.planned != self.plan_number {
                self.preempt(victim.tree, victim.path);
                return Ok(true);
            }
        }
        Ok(nothing_runs && self.memory.evict_one(Claim::OverAll)?)
    }

    fn preempt(&mut self, tree: TreeId, path: PathId) {
        self.leave_row(tree, path);
        self.memory.set_use(tree, path, Use::Waiting);
        self.wait(tree, path);
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
        let first = writer.sizes.num_tokens;
        let tokens = first..first + query.count as usize;
        let forest_tree = &self.search.forest().trees()[tree.index()];
        let ids = &mut writer.out.token_ids[tokens.clone()];
        match forest_tree.newest_id(path).filter(|_| query.start + 1 == query.len) {
            Some(newest) => ids[0] = i64::from(newest), // a decode row, the common case
            None => forest_tree.fill_tokens(path, query.start, ids),
        }
        let positions = &mut writer.out.positions[tokens.clone()];
        for (place, position) in positions.iter_mut().zip(query.start..) {
            *place = i64::from(position);
        }
        let num_resident = (query.computed - query.start) as usize;
        let slots = &mut writer.out.slot_mapping[tokens.clone()];
        slots[..num_resident].fill(0);
        self.memory.write_slots(tree, path, query.computed, &mut slots[num_resident..]);
        self.memory.publish_prefix(forest_tree, tree, path, query.computed, query.end());
        writer.sizes.num_tokens = tokens.end;
        writer.push_row(row, query.end());
        self.plan.fed.push(Fed { tree, path, end: query.end() });
        self.count_query(tree, path, query);
        if query.end() == query.len {
            self.write_samples(tree, path, query.len, writer);
        } else {
            self.stats.chunked_prefills += 1;
        }
        let prefilling = &mut self.trees[tree.index()].prefilling;
        if query.len - query.start > 1 && prefilling.is_none() {
            *prefilling = Some(path);
        }
    }

    fn write_table(
        &mut self,
        tree: TreeId,
        path: PathId,
        row: u32,
        writer: &mut PlanWriter<'_, '_>,
    ) {
        let Some(entry) = &mut self.rows.taken[row as usize] else { return };
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
        while !self.rows.free.is_empty() {
            let Some(path) = self.pop_follower(tree, leader) else { return };
            self.take_row(tree, path);
            self.state_mut(tree, path).planned = self.plan_number;
            self.write_sample(tree, path, leader, len, writer);
        }
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
        let plan_number = self.plan_number;
        let state = self.state_mut(tree, path);
        debug_assert_eq!(state.place, Place::Nowhere, "a planned path is in its row");
        state.planned = plan_number;
        let from = query.start.max(query.computed);
        let again = state.high_water.min(query.end()).saturating_sub(from);
        state.high_water = state.high_water.max(query.end());
        self.stats.fed_tokens += u64::from(query.count);
        self.stats.recomputed_tokens += u64::from(again);
        self.stats.refed_tokens += u64::from(query.computed - query.start);
    }

    fn count_plan(&mut self) {
        let resident = self.memory.pool().capacity() - self.memory.pool().num_free();
        self.stats.peak_blocks = self.stats.peak_blocks.max(u64::from(resident));
        if self.plan.is_open {
            let num_free = self.rows.free.len() as u64;
            self.stats.row_steps += u64::from(self.config.max_num_seqs);
            self.stats.idle_row_steps += num_free;
            self.stats.round_wait_row_steps += num_free.min(u64::from(self.num_ended_segments));
        }
    }
}
