//! Taking memory from idle paths.

use super::idle::{Give, Idle};
use super::{Memory, Rank, Use};
use crate::error::Result;
use crate::ids::{PathId, TreeId};

/// Whom a path may take memory from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Leaves, and waiting paths that are less important.
    Over(Rank),
    /// Every idle path: nothing else could run (law S1).
    OverAll,
}

impl Claim {
    fn covers(self, idle: Idle) -> bool {
        match self {
            Self::Over(rank) => idle.usage == Use::Finished || idle.rank > rank,
            Self::OverAll => true,
        }
    }
}

/// What came of asking an idle path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Gave,
    HasNothing,
    /// What it has is held by others as well.
    IsShared,
}

impl Memory {
    /// The place of a path in the order of eviction.
    pub(crate) fn rank(&self, tree: TreeId, path: PathId) -> Rank {
        Rank { urgency: self.trees[tree.index()].urgency, tree, path }
    }

    /// Changes the place of a tree's paths in the order of eviction.
    pub(crate) fn set_urgency(&mut self, tree: TreeId, urgency: i32) {
        let own = &mut self.trees[tree.index()];
        if own.urgency == urgency {
            return;
        }
        own.urgency = urgency;
        own.epoch = own.epoch.wrapping_add(1);
        own.paths.iter_mut().for_each(|path| path.offers = 0);
        let num_paths = own.paths.len();
        for p in 0..num_paths {
            self.offer(tree, PathId(p as u32));
        }
        self.forget_idle(num_paths);
    }

    /// Changes what the path is doing.
    pub(crate) fn set_use(&mut self, tree: TreeId, path: PathId, to: Use) {
        let own = self.at_mut(tree, path);
        if std::mem::replace(&mut own.usage, to) != to {
            self.offer(tree, path);
        }
    }

    /// Puts an idle path that holds something into the order of eviction.
    pub(super) fn offer(&mut self, tree: TreeId, path: PathId) {
        let own = self.at(tree, path);
        let holds = own.num_blocks > 0 || own.pending.is_some();
        if own.usage != Use::Running && holds {
            let epoch = self.trees[tree.index()].epoch;
            let idle = Idle { usage: own.usage, rank: self.rank(tree, path), epoch };
            self.put(Give::Own, idle);
        }
    }

    fn put(&mut self, give: Give, idle: Idle) {
        let own = self.at_mut(idle.rank.tree, idle.rank.path);
        let bit = idle.bit(give);
        if own.offers & bit == 0 {
            own.offers |= bit;
            self.idle.push(give, idle);
        }
    }

    /// Takes an entry out; whether it still says something.
    fn withdraw(&mut self, give: Give, idle: Idle) -> bool {
        self.idle.pop(give);
        let Rank { tree, path, .. } = idle.rank;
        let own_tree = &mut self.trees[tree.index()];
        if own_tree.epoch != idle.epoch {
            return false;
        }
        let Some(own) = own_tree.paths.get_mut(path.index()) else { return false };
        own.offers &= !idle.bit(give);
        own.usage == idle.usage
    }

    /// Sweeps entries that say nothing any more.
    pub(super) fn forget_idle(&mut self, num_stale: usize) {
        let trees = &self.trees;
        self.idle.note_stale(num_stale, |idle| {
            let tree = &trees[idle.rank.tree.index()];
            let own = tree.paths.get(idle.rank.path.index());
            own.is_some() && tree.epoch == idle.epoch
        });
    }

    /// Takes memory from the idle path that comes first in the order of eviction, at most one
    /// block. Returns whether anything was taken; the pool may still be empty then, as others may
    /// hold the block.
    pub(crate) fn evict_one(&mut self, claim: Claim) -> Result<bool> {
        for give in [Give::Own, Give::Shared] {
            while let Some(idle) = self.idle.peek(give).filter(|&idle| claim.covers(idle)) {
                if !self.withdraw(give, idle) {
                    continue;
                }
                match self.ask(idle.rank.tree, idle.rank.path, give)? {
                    Answer::Gave => {
                        self.num_evicted += 1;
                        self.put(give, idle);
                        return Ok(true);
                    }
                    Answer::IsShared => self.put(Give::Shared, idle),
                    Answer::HasNothing => {}
                }
            }
        }
        Ok(false)
    }

    fn ask(&mut self, tree: TreeId, path: PathId, give: Give) -> Result<Answer> {
        let own = *self.at(tree, path);
        let gives_shared = give == Give::Shared || own.usage == Use::Finished;
        if let Some(pending) = own.pending {
            if self.pool().count(pending.from) > 1 && !gives_shared {
                return Ok(Answer::IsShared);
            }
            self.at_mut(tree, path).pending = None;
            self.at_mut(tree, path).computed = own.num_blocks * self.block_size;
            self.release(pending.from)?;
            return Ok(Answer::Gave);
        }
        if own.num_blocks == 0 {
            return Ok(Answer::HasNothing);
        }
        if self.pool().count(own.tail) == 1 {
            self.pop_block(tree, path)?;
            return Ok(Answer::Gave);
        }
        if !gives_shared {
            return Ok(Answer::IsShared);
        }
        *self.at_mut(tree, path) = own.emptied();
        self.release(own.tail)?;
        Ok(Answer::Gave)
    }

    /// Takes from a path what lies wholly behind its first `len` tokens; returns the number of
    /// blocks, or of holds on shared ones.
    pub(crate) fn trim(&mut self, tree: TreeId, path: PathId, len: u32) -> Result<u32> {
        let num_kept = self.blocks_for(len);
        let own = *self.at(tree, path);
        let mut num_taken = 0;
        if let Some(pending) = own.pending.filter(|_| own.num_blocks >= num_kept) {
            self.at_mut(tree, path).pending = None;
            self.at_mut(tree, path).computed = own.num_blocks * self.block_size;
            self.release(pending.from)?;
            num_taken += 1;
        }
        while self.at(tree, path).num_blocks > num_kept {
            self.pop_block(tree, path)?;
            num_taken += 1;
        }
        Ok(num_taken)
    }

    /// Takes the last block of a path's chain.
    fn pop_block(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        let block_size = self.block_size;
        let block = self.at(tree, path).tail;
        let (tail, is_free) = self.chains.pop(block)?;
        if is_free {
            self.prefixes.remove(block);
        }
        let own = self.at_mut(tree, path);
        own.tail = tail;
        own.num_blocks -= 1;
        if own.num_blocks == 0 {
            own.front = tail;
        }
        own.computed = own.computed.min(own.num_blocks * block_size);
        Ok(())
    }
}
