//! Trees come in, are admitted, and leave.

use super::{PathState, Place, Scheduler, TreeState};
use crate::error::Result;
use crate::ids::{PathId, TreeId};
use crate::search::MAX_RESERVED_PATHS;

/// Blocks that a tree needs at worst.
#[derive(Debug, Clone, Copy)]
struct Growth {
    prompt: u64,
    /// For each leaf that is still missing.
    leaf: u64,
}

impl Scheduler {
    /// Queues a tree. O(prompt).
    ///
    /// # Errors
    /// `PromptTooLong`, `PoolTooSmall` if the pool cannot hold one path of this tree,
    /// `InvalidInput` for an empty prompt.
    pub fn add_tree(&mut self, key: u64, prompt: &[u32]) -> Result<TreeId> {
        let max_len = self.search.max_path_len(prompt.len() as u32)?;
        self.memory.check_fits(max_len)?;
        let tree = self.search.add_tree(key, prompt)?;
        self.enter_tree(tree)?;
        self.follow_events()?;
        Ok(tree)
    }

    /// Makes the state of a tree that the search has just got, and queues it.
    pub(super) fn enter_tree(&mut self, tree: TreeId) -> Result<()> {
        let max_paths = self.search.config().max_paths().min(MAX_RESERVED_PATHS) as usize;
        self.trees.push(TreeState { is_queued: true, ..TreeState::default() });
        self.trees[tree.index()].paths.reserve(max_paths);
        self.add_path(tree, PathId(0), 0)?;
        self.memory.reserve_paths(tree, max_paths);
        self.orders.num_queued += 1;
        self.enqueue(0, tree);
        self.finished.reserve(self.orders.num_queued + self.num_open_trees as usize);
        Ok(())
    }

    pub(super) fn add_path(&mut self, tree: TreeId, path: PathId, high_water: u32) -> Result<()> {
        self.memory.add_path(tree, path)?;
        self.trees[tree.index()].paths.push(PathState::new(high_water));
        Ok(())
    }

    /// Admits queued trees while rows are left for their first paths and the worst growth of all
    /// open trees fits into the stated part of the pool.
    pub(super) fn admit_trees(&mut self) {
        let capacity = u64::from(self.memory.pool().capacity());
        let limit = capacity * u64::from(self.config.admission_percent) / 100;
        while let Some(tree) = self.next_queued() {
            let Growth { prompt, leaf } = self.worst_growth(tree);
            let growth = prompt + u64::from(self.search.config().width) * leaf;
            let has_rows = self.orders.num_waiting < self.rows.free.len();
            if self.num_open_trees > 0 && !(has_rows && self.reserved + growth <= limit) {
                return;
            }
            self.leave_queue(tree);
            self.open_tree(tree);
        }
    }

    pub(super) fn open_tree(&mut self, tree: TreeId) {
        self.num_open_trees += 1;
        self.trees[tree.index()].is_open = true;
        self.reserve(tree);
        for p in 0..self.trees[tree.index()].paths.len() {
            if self.trees[tree.index()].paths[p].place == Place::Parked {
                self.wait(tree, PathId(p as u32));
            }
        }
    }

    /// What a tree needs if all its paths leave the prompt at once and get as long as may be.
    fn worst_growth(&self, tree: TreeId) -> Growth {
        let prompt_len = self.search.forest().trees()[tree.index()].prompt_len;
        let max_len = self.search.max_path_len(prompt_len).unwrap_or(prompt_len);
        let leaf = u64::from(self.memory.blocks_for(max_len - prompt_len) + 1);
        Growth { prompt: u64::from(self.memory.blocks_for(prompt_len)), leaf }
    }

    /// Reserves what an open tree may still need: a leaf's blocks are residue.
    pub(super) fn reserve(&mut self, tree: TreeId) {
        let Growth { prompt, leaf } = self.worst_growth(tree);
        let growth = prompt + u64::from(self.search.num_missing(tree)) * leaf;
        let state = &mut self.trees[tree.index()];
        if state.is_open {
            self.reserved -= std::mem::replace(&mut state.reserved, growth);
            self.reserved += growth;
        }
    }

    /// Ends a tree at once and frees its memory.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown tree or while a plan is open.
    pub fn abort_tree(&mut self, tree: TreeId) -> Result<()> {
        self.check_no_plan("aborting a tree")?;
        self.search.forest().tree(tree)?;
        if self.search.is_tree_done(tree) {
            return Ok(());
        }
        self.search.abort_tree(tree)?;
        self.close_tree(tree)
    }

    pub(super) fn close_tree(&mut self, tree: TreeId) -> Result<()> {
        self.leave_queue(tree);
        for p in 0..self.trees[tree.index()].paths.len() {
            self.leave_place(tree, PathId(p as u32));
        }
        self.memory.free_tree(tree)?;
        self.trees[tree.index()].paths = Vec::new();
        if std::mem::take(&mut self.trees[tree.index()].is_open) {
            self.num_open_trees -= 1;
            self.reserved -= std::mem::take(&mut self.trees[tree.index()].reserved);
        }
        self.finished.push(tree);
        Ok(())
    }
}
