//! The end of segments, rounds and trees.

use super::grow::{Round, Scratch};
use super::prune::{confidence, should_prune};
use super::state::Phase;
use super::{
    Event, FallbackFrom, PruneBy, PrunedLeaves, Search, Verdicts, budget, positions, weights,
};
use crate::error::Result;
use crate::forest::FinishReason;
use crate::ids::{PathId, TreeId};

impl Search {
    /// Ends what the newest token of a running path ends.
    pub(super) fn follow_token(
        &mut self,
        tree: TreeId,
        path: PathId,
        segment_end: u32,
    ) -> Result<()> {
        let Some(stop) = &mut self.stop else { return Ok(()) };
        let (config, state) = (&self.config, &self.trees[tree.index()]);
        let of_tree = self.forest.tree(tree)?;
        let own = of_tree.own(path);
        let (full, segment_ends) = (own.len() == state.max_len, own.len() == segment_end);
        let depth = own.depth() + 1;
        let mut reason = stop.reason(config, of_tree, path, full, segment_ends, depth);
        if reason.is_none() && config.prune.by != PruneBy::Nothing {
            let confidence = confidence(&config.prune, of_tree, path);
            let is_low = should_prune(&config.prune, &state.threshold, confidence);
            reason = is_low.then_some(FinishReason::Pruned);
        }
        if reason.is_some() || segment_ends {
            self.end_segment(tree, path, reason)?;
        }
        Ok(())
    }

    pub(super) fn end_segment(
        &mut self,
        tree: TreeId,
        path: PathId,
        reason: Option<FinishReason>,
    ) -> Result<()> {
        self.forest.mark(tree, path)?;
        if let Some(reason) = reason {
            self.finish(tree, path, reason)?;
        } else {
            let state = &mut self.trees[tree.index()];
            state.num_running -= 1;
            state.path_mut(path).phase = match self.config.verdicts {
                Verdicts::Nothing => Phase::Waits,
                Verdicts::Segments => {
                    state.num_pending += 1;
                    Phase::Pending
                }
            };
            self.events.push(Event::Waits(tree, path));
        }
        self.end_round_if_over(tree)
    }

    /// Makes a live path a leaf and counts it.
    pub(super) fn finish(
        &mut self,
        tree: TreeId,
        path: PathId,
        reason: FinishReason,
    ) -> Result<()> {
        self.forest.finish(tree, path, reason)?;
        let len = self.forest.path(tree, path)?.len();
        let state = &mut self.trees[tree.index()];
        state.remove_live(path, len);
        let is_pruned = reason == FinishReason::Pruned;
        let may_replace = self.config.prune.leaves == PrunedLeaves::AreReplaced;
        if is_pruned && may_replace && state.num_replaced + 1 < self.config.width {
            state.num_replaced += 1;
        } else {
            state.num_leaves += 1;
            state.num_finished += 1;
        }
        if is_pruned {
            self.events.push(Event::Pruned(tree, path));
        } else {
            state.finished.push(path);
            self.events.push(Event::Finished(tree, path));
        }
        Ok(())
    }

    /// Ends the tree's round if none of its paths runs or waits for a verdict.
    pub(super) fn end_round_if_over(&mut self, tree: TreeId) -> Result<()> {
        if !self.trees[tree.index()].ends_round() {
            return Ok(());
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let round = self.close_round(tree);
        let result = if self.trees[tree.index()].live.is_empty() {
            self.restart(tree, round, &mut scratch)
        } else {
            self.go_on(tree, round, &mut scratch)
        };
        self.trees[tree.index()].finished.clear();
        self.scratch = scratch;
        result
    }

    /// Takes stock of the round. Leaves are looked at by path, as their order of arrival depends on
    /// the schedule (law S4).
    fn close_round(&mut self, tree: TreeId) -> Round {
        let (config, of_tree) = (&self.config, &self.forest.trees()[tree.index()]);
        let state = &mut self.trees[tree.index()];
        state.finished.sort_unstable();
        if config.prune.warmup_leaves > 0 {
            for &path in &state.finished {
                match config.prune.by {
                    PruneBy::Nothing => {}
                    PruneBy::Score if state.threshold.is_warming_up() => {
                        let lowest = state.lowest_score(of_tree, path);
                        state.threshold.observe_lowest(lowest);
                    }
                    PruneBy::Score => state.scores.clear(),
                    _ => state.threshold.observe_leaf(&config.prune, of_tree, path),
                }
            }
        }
        state.round = state.round.wrapping_add(1); // snapshots may hold any number
        Round {
            number: state.round,
            missing: budget::width(config, state).saturating_sub(state.num_leaves),
            num_finished: std::mem::take(&mut state.num_finished),
            share: budget::share(config, self.num_open),
        }
    }

    /// The live paths go on, and others start beside them.
    fn go_on(&mut self, tree: TreeId, round: Round, scratch: &mut Scratch) -> Result<()> {
        scratch.live.clear();
        scratch.live.extend_from_slice(&self.trees[tree.index()].live);
        let early = self.early_restarts(tree, round, scratch)?;
        let round = Round {
            missing: round.missing.saturating_sub(early),
            share: round.share.saturating_sub(early),
            ..round
        };
        if positions::is_token_rule(self.config.branch.by) {
            self.find_positions(tree, scratch)?;
            for &path in &scratch.live {
                self.go_on_with(tree, path);
            }
            let room = round.missing.min(round.share).saturating_sub(scratch.live.len() as u32);
            self.fork_positions(tree, room, scratch)?;
        } else {
            self.branch(tree, round, scratch)?;
        }
        self.fork_restarts(tree, scratch)
    }

    /// No path lives: the tree samples tokens anew, falls back or is done.
    fn restart(&mut self, tree: TreeId, round: Round, scratch: &mut Scratch) -> Result<()> {
        scratch.live.clear();
        let missing = round.missing.min(round.share);
        if missing > 0 && positions::is_token_rule(self.config.branch.by) {
            self.find_positions(tree, scratch)?;
            self.fork_positions(tree, missing, scratch)?;
        }
        let falls_back = self.config.fallback.from != FallbackFrom::Nothing;
        if missing > 0 && falls_back && self.trees[tree.index()].live.is_empty() {
            self.find_restarts(tree, round.number, missing, scratch)?;
            self.fork_restarts(tree, scratch)?;
        }
        if self.trees[tree.index()].live.is_empty() {
            self.close_tree(tree, scratch)?;
            self.events.push(Event::TreeDone(tree));
        }
        Ok(())
    }

    /// Ends the tree and writes its weights.
    fn close_tree(&mut self, tree: TreeId, scratch: &mut Scratch) -> Result<()> {
        self.trees[tree.index()].is_done = true;
        self.num_open -= 1;
        weights::write(&mut self.forest, tree, &mut scratch.weights)
    }

    /// Ends all live paths of a tree with [`FinishReason::Abort`]. A tree that is done stays as it
    /// is.
    ///
    /// # Errors
    /// `InvalidInput` for a tree that does not exist.
    pub fn abort_tree(&mut self, tree: TreeId) -> Result<()> {
        self.forest.tree(tree)?;
        if self.is_tree_done(tree) {
            return Ok(());
        }
        self.note_caller(tree)?;
        while let Some(&path) = self.trees[tree.index()].live.last() {
            self.forest.finish(tree, path, FinishReason::Abort)?;
            let len = self.forest.path(tree, path)?.len();
            self.trees[tree.index()].remove_live(path, len);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = self.close_tree(tree, &mut scratch);
        self.scratch = scratch;
        result
    }
}
