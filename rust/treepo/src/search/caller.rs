//! What the embedding program has a say in: verdicts, forks, pruning, going back.

use super::prune::should_prune;
use super::state::{Phase, Score};
use super::{Event, PruneBy, Search, view};
use crate::error::{Error, Result};
use crate::forest::{Dependence, FinishReason, ForkOrigin};
use crate::ids::{PathId, TreeId};

/// The caller's judgement of a segment, for [`Verdicts::Segments`](super::Verdicts).
///
/// A tree stays replayable by whoever gives the same verdicts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// The path goes on.
    Continue {
        /// The segment's score, for the rules that use one.
        score: f32,
    },
    /// The path ends as a leaf with [`FinishReason::Stop`].
    Stop,
    /// The path is given up.
    Prune,
}

impl Search {
    /// The paths that wait for a verdict, tree by tree. O(trees + live paths).
    pub fn ended_segments(&self) -> impl Iterator<Item = (TreeId, PathId)> + '_ {
        let trees = (0..).map(TreeId).zip(&self.trees);
        trees.flat_map(|(tree, state)| {
            let waits = |path: &&PathId| state.path(**path).phase == Phase::Pending;
            state.live.iter().filter(waits).map(move |&path| (tree, path))
        })
    }

    /// Whether a path waits for a verdict. O(trees).
    pub fn awaits_verdicts(&self) -> bool {
        self.trees.iter().any(|state| state.num_pending > 0)
    }

    /// Gives the verdict on the segment that a path has ended; the round may end with it.
    ///
    /// # Errors
    /// `InvalidInput` unless the path waits for a verdict and its score is finite; nothing has
    /// changed then.
    pub fn report(&mut self, tree: TreeId, path: PathId, verdict: Verdict) -> Result<()> {
        let len = self.forest.path(tree, path)?.len();
        let state = &mut self.trees[tree.index()];
        if state.path(path).phase != Phase::Pending {
            let message = format!("path {path} of tree {tree} does not wait for a verdict");
            return Err(Error::InvalidInput(message));
        }
        match verdict {
            Verdict::Continue { score } if !score.is_finite() => {
                let message =
                    format!("score of path {path} of tree {tree} is {score}; report a finite one");
                return Err(Error::InvalidInput(message));
            }
            Verdict::Continue { score } => {
                let own = state.path_mut(path);
                own.score = score;
                let rule = &self.config.prune;
                if rule.by == PruneBy::Score && state.threshold.is_warming_up() {
                    state.scores.push(Score { path, at: len, value: score });
                }
                let is_judged = rule.by == PruneBy::Score;
                if is_judged && should_prune(rule, &state.threshold, Some(score)) {
                    self.finish(tree, path, FinishReason::Pruned)?;
                } else {
                    state.path_mut(path).phase = Phase::Waits;
                    state.num_pending -= 1;
                }
            }
            Verdict::Stop => self.finish(tree, path, FinishReason::Stop)?,
            Verdict::Prune => self.finish(tree, path, FinishReason::Pruned)?,
        }
        self.end_round_if_over(tree)
    }

    /// Starts a path that shares the first `at` tokens of `path`; it joins the round. The tree is
    /// no longer replayable. O(ancestors).
    ///
    /// # Errors
    /// `InvalidInput` if the tree is done, if its leaves and live paths are `width` already, or if
    /// `at` lies outside the completion or at the end of a leaf; nothing has changed then.
    pub fn fork(&mut self, tree: TreeId, path: PathId, at: u32) -> Result<PathId> {
        self.check_fork(tree, path, at)?;
        let (width, taken) = (self.config.width, self.trees[tree.index()].num_taken());
        if taken >= width {
            return Err(Error::InvalidInput(format!(
                "fork in tree {tree}: its leaves and live paths are {taken} of width {width}; \
                 rewind a path instead, or let prune.leaves be are_replaced and prune one first"
            )));
        }
        self.fork_by_caller(tree, path, at)
    }

    /// Gives a live path up; the round ends if it was the last that ran. The tree is no longer
    /// replayable.
    ///
    /// # Errors
    /// `InvalidInput` unless the path lives; nothing has changed then.
    pub fn prune(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        self.check_live(tree, path)?;
        self.note_caller(tree)?;
        self.finish(tree, path, FinishReason::Pruned)?;
        self.end_round_if_over(tree)
    }

    /// Gives up every live path that shares the first `at` tokens of `path`, and returns how many.
    /// The tree is no longer replayable if there are any. O(paths * ancestors).
    ///
    /// # Errors
    /// `InvalidInput` for unknown ids or `at` outside the completion; nothing has changed then.
    pub fn prune_subtree(&mut self, tree: TreeId, path: PathId, at: u32) -> Result<u32> {
        self.check_position(tree, path, at)?;
        let owner = view::owner(self.forest.tree(tree)?, path, at - 1);
        let mut num_pruned = 0;
        for i in (0..self.trees[tree.index()].live.len()).rev() {
            let live = self.trees[tree.index()].live[i];
            let of_tree = self.forest.tree(tree)?;
            if view::owner(of_tree, live, at - 1) == owner {
                self.finish(tree, live, FinishReason::Pruned)?;
                num_pruned += 1;
            }
        }
        if num_pruned > 0 {
            self.note_caller(tree)?;
            self.end_round_if_over(tree)?;
        }
        Ok(num_pruned)
    }

    /// Goes back to the first `at` tokens of a live path: a new path starts there, and the old one
    /// is pruned and does not count towards the width. Inclusion weights divide between the two as
    /// at any fork. The tree is no longer replayable.
    ///
    /// # Errors
    /// `InvalidInput` unless the path lives and `at` lies within its completion; nothing has changed
    /// then.
    pub fn rewind(&mut self, tree: TreeId, path: PathId, at: u32) -> Result<PathId> {
        self.check_live(tree, path)?;
        self.check_fork(tree, path, at)?;
        let new = self.fork_by_caller(tree, path, at)?;
        self.forest.finish(tree, path, FinishReason::Pruned)?;
        let len = self.forest.path(tree, path)?.len();
        let state = &mut self.trees[tree.index()];
        state.remove_live(path, len);
        state.num_rewound += 1;
        self.events.push(Event::Pruned(tree, path));
        Ok(new)
    }

    /// The caller's decisions may depend on anything.
    pub(super) fn note_caller(&mut self, tree: TreeId) -> Result<()> {
        self.forest.set_dependence(tree, Dependence::SampledToken)?;
        self.forest.set_not_replayable(tree)
    }

    fn fork_by_caller(&mut self, tree: TreeId, path: PathId, at: u32) -> Result<PathId> {
        self.note_caller(tree)?;
        let new = PathId(self.trees[tree.index()].paths.len() as u32);
        self.fork_copies(tree, path, at, 1, ForkOrigin::Caller, None)?;
        Ok(new)
    }

    fn check_live(&self, tree: TreeId, path: PathId) -> Result<()> {
        match self.forest.path(tree, path)?.finish {
            None => Ok(()),
            Some(reason) => Err(Error::InvalidInput(format!(
                "path {path} of tree {tree} is finished ({reason:?})"
            ))),
        }
    }

    fn check_position(&self, tree: TreeId, path: PathId, at: u32) -> Result<()> {
        let len = self.forest.path(tree, path)?.len();
        let prompt_len = self.forest.tree(tree)?.prompt_len;
        if at < prompt_len || at > len {
            return Err(Error::InvalidInput(format!(
                "path {path} of tree {tree} at {at}: the position lies outside {prompt_len}..={len}"
            )));
        }
        Ok(())
    }

    /// A path that lives or that goes on behind `at` has length and depth left there.
    fn check_fork(&self, tree: TreeId, path: PathId, at: u32) -> Result<()> {
        self.check_position(tree, path, at)?;
        let own = self.forest.path(tree, path)?;
        let problem = if self.is_tree_done(tree) {
            "the tree is done"
        } else if own.finish.is_some() && at == own.len() {
            "the path is finished there"
        } else {
            return Ok(());
        };
        let message = format!("fork of path {path} of tree {tree} at {at}: {problem}");
        Err(Error::InvalidInput(message))
    }
}
