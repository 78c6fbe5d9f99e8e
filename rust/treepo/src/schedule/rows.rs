//! Rows of the batch: who is in which, and how much of its block table the caller has.

use super::{Place, Scheduler};
use crate::ids::{PathId, TreeId};
use crate::memory::Use;

/// A row of the batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) tree: TreeId,
    pub(super) path: PathId,
    /// Entries of its block table that the caller has.
    pub(super) table_len: u32,
}

/// All rows.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    pub(super) taken: Vec<Option<Row>>,
    pub(super) free: Vec<u32>,
}

impl Rows {
    pub(super) fn new(num_rows: u32) -> Self {
        Self { taken: vec![None; num_rows as usize], free: (0..num_rows).rev().collect() }
    }
}

impl Scheduler {
    /// Puts a path into a free row, if there is one.
    pub(super) fn take_row(&mut self, tree: TreeId, path: PathId) -> bool {
        let Some(row) = self.rows.free.pop() else { return false };
        self.rows.taken[row as usize] = Some(Row { tree, path, table_len: 0 });
        self.state_mut(tree, path).row = Some(row);
        self.memory.set_use(tree, path, Use::Running);
        self.list_running(tree, path);
        true
    }

    /// Takes the path out of its row, if it has one.
    pub(super) fn leave_row(&mut self, tree: TreeId, path: PathId) {
        if let Some(row) = self.state_mut(tree, path).row.take() {
            self.rows.taken[row as usize] = None;
            self.rows.free.push(row);
            self.end_prefill(tree, path);
        }
    }

    /// Lets a path wait for what another path of its tree computes in this step, if they have
    /// tokens in common that it lacks: no step computes a token twice.
    pub(super) fn queue_behind(&mut self, tree: TreeId, path: PathId) -> bool {
        let own = &self.trees[tree.index()];
        let Some(other) = own.prefilling else { return false };
        let own_tree = &self.search.forest().trees()[tree.index()];
        if own_tree.shared_len(path, other) <= self.memory.computed(tree, path) {
            return false;
        }
        let next_follower = own.first_behind;
        self.trees[tree.index()].first_behind = Some(path);
        let state = self.state_mut(tree, path);
        state.place = Place::Behind;
        state.next_follower = next_follower;
        true
    }

    /// The path computes no more than its last token from here on: those behind it can go on.
    pub(super) fn end_prefill(&mut self, tree: TreeId, path: PathId) {
        let own = &mut self.trees[tree.index()];
        if own.prefilling != Some(path) {
            return;
        }
        own.prefilling = None;
        while let Some(behind) = self.trees[tree.index()].first_behind {
            let next = self.state_mut(tree, behind).next_follower.take();
            self.trees[tree.index()].first_behind = next;
            if self.state(tree, behind).place == Place::Behind {
                self.wait(tree, behind);
            }
        }
    }

    /// Takes the path out of wherever it is.
    pub(super) fn leave_place(&mut self, tree: TreeId, path: PathId) {
        self.leave_row(tree, path);
        match std::mem::take(&mut self.state_mut(tree, path).place) {
            Place::Waits => self.orders.num_waiting -= 1,
            Place::EndedSegment => self.num_ended_segments -= 1,
            Place::Nowhere | Place::Parked | Place::Behind => {}
        }
    }

    /// Puts a path behind the leader's last follower. O(1).
    pub(super) fn add_follower(&mut self, tree: TreeId, leader: PathId, path: PathId) {
        let state = self.state_mut(tree, leader);
        let last = std::mem::replace(&mut state.last_follower, path);
        match state.first_follower {
            None => state.first_follower = Some(path),
            Some(_) => self.state_mut(tree, last).next_follower = Some(path),
        }
    }

    /// Takes the leader's first follower away, one that lives: the caller may have pruned others.
    pub(super) fn pop_follower(&mut self, tree: TreeId, leader: PathId) -> Option<PathId> {
        loop {
            let follower = self.state(tree, leader).first_follower?;
            let next = self.state_mut(tree, follower).next_follower.take();
            self.state_mut(tree, leader).first_follower = next;
            let own = self.search.forest().trees()[tree.index()].own(follower);
            if own.finish.is_none() {
                return Some(follower);
            }
        }
    }
}
