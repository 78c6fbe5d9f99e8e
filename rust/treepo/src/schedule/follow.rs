//! What the search decides, carried out.

use super::{Place, Scheduler};
use crate::error::Result;
use crate::forest::ForkOrigin;
use crate::ids::{PathId, TreeId};
use crate::memory::Use;
use crate::search::Event;

impl Scheduler {
    /// Does what the search's events ask for.
    pub(super) fn follow_events(&mut self) -> Result<()> {
        let mut events = std::mem::take(&mut self.events);
        self.search.swap_events(&mut events);
        let mut result = events.iter().try_for_each(|&event| self.follow(event));
        if result.is_ok() {
            // not before: what follows may begin with tokens of a path that is given up
            result = events.iter().try_for_each(|&event| self.free_pruned(event));
        }
        self.events = events;
        result
    }

    fn free_pruned(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Pruned(tree, path) if !self.trees[tree.index()].paths.is_empty() => {
                self.memory.free_path(tree, path)
            }
            _ => Ok(()),
        }
    }

    fn follow(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Waits(tree, path) => {
                self.leave_place(tree, path);
                self.memory.set_use(tree, path, Use::Waiting);
                self.state_mut(tree, path).place = Place::EndedSegment;
                self.num_ended_segments += 1;
            }
            Event::Finished(tree, path) => {
                self.leave_place(tree, path);
                self.memory.set_use(tree, path, Use::Finished);
                self.trim(tree, path)?;
                self.reserve(tree);
            }
            Event::Pruned(tree, path) => {
                self.give_up(tree, path)?;
                self.reserve(tree);
                self.stats.prunes += 1;
            }
            Event::Continues(tree, path) => {
                self.leave_place(tree, path);
                self.wait(tree, path);
            }
            Event::Forked { tree, path, source, leader } => {
                let at = self.search.forest().path(tree, path)?.at;
                self.add_path(tree, path, at)?;
                self.count_fork(tree, path)?;
                if leader == path {
                    self.attach(tree, path, Some(source))?; // what it begins with must not be evicted first
                    self.wait(tree, path);
                } else {
                    self.add_follower(tree, leader, path);
                }
            }
            Event::TreeDone(tree) => self.close_tree(tree)?,
        }
        Ok(())
    }

    /// Takes the memory from a leaf that the search will not fork it in.
    fn trim(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        let len = self.search.last_fork(tree, path)?;
        self.stats.trimmed_blocks += u64::from(self.memory.trim(tree, path, len)?);
        Ok(())
    }

    fn count_fork(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        match self.search.forest().path(tree, path)?.origin {
            ForkOrigin::Branch => self.stats.branches += 1,
            ForkOrigin::Fallback => self.stats.fallbacks += 1,
            _ => {}
        }
        Ok(())
    }

    /// Takes a pruned path out. Paths that were to be sampled from its row keep what they share
    /// with it.
    fn give_up(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        while let Some(follower) = self.pop_follower(tree, path) {
            let at = self.search.forest().path(tree, follower)?.at;
            let resident = at.min(self.memory.computed(tree, path));
            self.memory.share(tree, follower, path, resident)?;
            self.wait(tree, follower);
        }
        self.leave_place(tree, path);
        self.memory.set_use(tree, path, Use::Finished);
        Ok(())
    }
}
