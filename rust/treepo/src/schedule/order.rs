//! Who comes next: running rows by rank, waiting paths by turn, queued trees by urgency.
//!
//! None of these structures is searched. An entry that is out of date is dropped when it comes up;
//! the state of its path says whether it is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{Place, Scheduler, TreeState};
use crate::ids::{PathId, TreeId};
use crate::memory::Rank;

/// Entries that are out of date and may stay however few others there are.
const MIN_SWEEP: usize = 64;

/// The turn of a path that waits for a row; the smallest is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    urgency: i32,
    /// Tokens that the tree has had, with the worth of the trees before it.
    service: u64,
    pub(super) tree: TreeId,
    pub(super) path: PathId,
    /// That of the path when it got this turn.
    stamp: u32,
}

/// The orders in which paths and trees come up.
#[derive(Debug, Clone, Default)]
pub(super) struct Orders {
    /// Paths that have had a row since the list was last swept, by rank once it has been.
    pub(super) running: Vec<Rank>,
    waiting: BinaryHeap<Reverse<Turn>>,
    /// Paths that wait for a row.
    pub(super) num_waiting: usize,
    queue: BinaryHeap<Reverse<(i32, TreeId, u32)>>,
    /// Trees that have not been admitted.
    pub(super) num_queued: usize,
}

/// Whether a path still waits for the turn that this entry says.
fn is_current(trees: &[TreeState], turn: Turn) -> bool {
    let own = trees[turn.tree.index()].paths.get(turn.path.index());
    own.is_some_and(|own| own.place == Place::Waits && own.stamp == turn.stamp)
}

impl Scheduler {
    /// Lets a path wait for a row; the paths of a queued tree wait for its admission first.
    pub(super) fn wait(&mut self, tree: TreeId, path: PathId) {
        let own = &self.trees[tree.index()];
        if !own.is_open {
            self.state_mut(tree, path).place = Place::Parked;
            return;
        }
        self.state_mut(tree, path).place = Place::Waits;
        self.orders.num_waiting += 1;
        self.push_turn(tree, path);
    }

    /// Gives a waiting path its turn; one that it has had is out of date.
    fn push_turn(&mut self, tree: TreeId, path: PathId) {
        let urgency = self.memory.rank(tree, path).urgency;
        let age = u64::from(self.config.age_bias).saturating_mul(tree.index() as u64);
        let service = self.trees[tree.index()].num_sampled.saturating_add(age);
        let state = self.state_mut(tree, path);
        state.stamp = state.stamp.wrapping_add(1);
        let stamp = state.stamp;
        self.orders.waiting.push(Reverse(Turn { urgency, service, tree, path, stamp }));
        if self.orders.waiting.len() > 2 * self.orders.num_waiting + MIN_SWEEP {
            let trees = &self.trees;
            self.orders.waiting.retain(|&Reverse(turn)| is_current(trees, turn));
        }
    }

    /// Queues a tree, or queues it anew with another urgency.
    pub(super) fn enqueue(&mut self, urgency: i32, tree: TreeId) {
        let state = &mut self.trees[tree.index()];
        state.stamp = state.stamp.wrapping_add(1);
        self.orders.queue.push(Reverse((urgency, tree, state.stamp)));
        if self.orders.queue.len() > 2 * self.orders.num_queued + MIN_SWEEP {
            let trees = &self.trees;
            self.orders.queue.retain(|&Reverse((_, tree, stamp))| {
                let state = &trees[tree.index()];
                state.is_queued && state.stamp == stamp
            });
        }
    }

    /// The path that has waited for a row and is next; it waits no more.
    pub(super) fn next_waiting(&mut self) -> Option<(TreeId, PathId)> {
        while let Some(Reverse(turn)) = self.orders.waiting.pop() {
            if is_current(&self.trees, turn) {
                let Turn { tree, path, .. } = turn;
                self.state_mut(tree, path).place = Place::Nowhere;
                self.orders.num_waiting -= 1;
                return Some((tree, path));
            }
        }
        None
    }

    /// The queued tree that is next; it stays in the queue.
    pub(super) fn next_queued(&mut self) -> Option<TreeId> {
        while let Some(&Reverse((_, tree, stamp))) = self.orders.queue.peek() {
            let state = &self.trees[tree.index()];
            if state.is_queued && state.stamp == stamp {
                return Some(tree);
            }
            self.orders.queue.pop();
        }
        None
    }

    /// Takes a tree out of the queue.
    pub(super) fn leave_queue(&mut self, tree: TreeId) {
        if std::mem::take(&mut self.trees[tree.index()].is_queued) {
            self.orders.num_queued -= 1;
        }
    }

    /// Brings the list of running paths up to date and in order.
    pub(super) fn sweep_running(&mut self) {
        let trees = &mut self.trees;
        let memory = &self.memory;
        self.orders.running.retain_mut(|rank| {
            let own = trees[rank.tree.index()].paths.get_mut(rank.path.index());
            own.is_some_and(|own| {
                own.is_listed = own.row.is_some();
                rank.urgency = memory.rank(rank.tree, rank.path).urgency;
                own.is_listed
            })
        });
        self.orders.running.sort_unstable();
    }

    pub(super) fn list_running(&mut self, tree: TreeId, path: PathId) {
        if !std::mem::replace(&mut self.state_mut(tree, path).is_listed, true) {
            let rank = self.memory.rank(tree, path);
            self.orders.running.push(rank);
        }
    }

    /// Makes a tree more or less important than others: larger first, 0 at the start. It decides
    /// when the tree's paths run, never what they become (law S4).
    ///
    /// This is the hook for best-first scheduling.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown tree.
    pub fn set_priority(&mut self, tree: TreeId, priority: i32) -> crate::Result<()> {
        self.search.forest().tree(tree)?;
        let urgency = priority.checked_neg().unwrap_or(i32::MAX);
        if self.search.is_tree_done(tree) || self.memory.rank(tree, PathId(0)).urgency == urgency {
            return Ok(());
        }
        self.memory.set_urgency(tree, urgency);
        if self.trees[tree.index()].is_queued {
            self.enqueue(urgency, tree);
        }
        for p in 0..self.trees[tree.index()].paths.len() {
            if self.trees[tree.index()].paths[p].place == Place::Waits {
                self.push_turn(tree, PathId(p as u32));
            }
        }
        Ok(())
    }
}
