//! What the embedding program has a say in, between the steps.

use super::Scheduler;
use crate::error::Result;
use crate::ids::{PathId, TreeId};
use crate::search::{TokenTexts, Verdict};

impl Scheduler {
    /// Gives the rules about text the bytes of every token; see [`Search::set_texts`].
    ///
    /// # Errors
    /// As [`Search::set_texts`].
    ///
    /// [`Search::set_texts`]: crate::Search::set_texts
    pub fn set_texts(&mut self, texts: TokenTexts) -> Result<()> {
        self.search.set_texts(texts)
    }

    /// The paths that wait for the caller's verdict, tree by tree. O(trees + live paths).
    pub fn ended_segments(&self) -> impl Iterator<Item = (TreeId, PathId)> + '_ {
        self.search.ended_segments()
    }

    /// Gives the verdict on the segment that a path has ended; see [`Search::report`].
    ///
    /// # Errors
    /// As [`Search::report`], and `InvalidInput` while a plan is open.
    ///
    /// [`Search::report`]: crate::Search::report
    pub fn report(&mut self, tree: TreeId, path: PathId, verdict: Verdict) -> Result<()> {
        self.check_no_plan("reporting a verdict")?;
        self.search.report(tree, path, verdict)?;
        self.follow_events()
    }

    /// Starts a path that shares the first `at` tokens of `path`; see [`Search::fork`]. O(1) for
    /// memory at the path's end, whatever its length.
    ///
    /// # Errors
    /// As [`Search::fork`], and `InvalidInput` while a plan is open.
    ///
    /// [`Search::fork`]: crate::Search::fork
    pub fn fork(&mut self, tree: TreeId, path: PathId, at: u32) -> Result<PathId> {
        self.check_no_plan("forking a path")?;
        let path = self.search.fork(tree, path, at)?;
        self.follow_events()?;
        Ok(path)
    }

    /// Gives a live path up; its blocks are free at once. See [`Search::prune`].
    ///
    /// # Errors
    /// As [`Search::prune`], and `InvalidInput` while a plan is open.
    ///
    /// [`Search::prune`]: crate::Search::prune
    pub fn prune(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        self.check_no_plan("pruning a path")?;
        self.search.prune(tree, path)?;
        self.follow_events()
    }

    /// Gives up every live path that shares the first `at` tokens of `path`; their blocks are free
    /// at once. See [`Search::prune_subtree`].
    ///
    /// # Errors
    /// As [`Search::prune_subtree`], and `InvalidInput` while a plan is open.
    ///
    /// [`Search::prune_subtree`]: crate::Search::prune_subtree
    pub fn prune_subtree(&mut self, tree: TreeId, path: PathId, at: u32) -> Result<u32> {
        self.check_no_plan("pruning a subtree")?;
        let num_pruned = self.search.prune_subtree(tree, path, at)?;
        self.follow_events()?;
        Ok(num_pruned)
    }

    /// Goes back to the first `at` tokens of a live path; see [`Search::rewind`]. The new path
    /// takes over what is resident of them.
    ///
    /// # Errors
    /// As [`Search::rewind`], and `InvalidInput` while a plan is open.
    ///
    /// [`Search::rewind`]: crate::Search::rewind
    pub fn rewind(&mut self, tree: TreeId, path: PathId, at: u32) -> Result<PathId> {
        self.check_no_plan("rewinding a path")?;
        let path = self.search.rewind(tree, path, at)?;
        self.follow_events()?;
        Ok(path)
    }

    /// Forgets all keys and values, for instance as the weights are new: what live paths need is
    /// computed again. An open plan is given up, as is right where its step has failed: its tokens
    /// are planned again.
    ///
    /// # Errors
    /// None that a caller can cause.
    pub fn drop_memory(&mut self) -> Result<()> {
        self.plan.is_open = false;
        self.plan.fed.clear();
        self.plan.samples.clear();
        self.memory.finish_copies()?;
        self.memory.flush_prefixes();
        for t in 0..self.trees.len() {
            for p in 0..self.trees[t].paths.len() {
                let (tree, path) = (TreeId(t as u32), PathId(p as u32));
                if self.state(tree, path).row.is_some() {
                    self.leave_row(tree, path);
                    self.memory.set_use(tree, path, crate::memory::Use::Waiting);
                    self.wait(tree, path);
                }
                self.memory.free_path(tree, path)?;
            }
        }
        Ok(())
    }
}
