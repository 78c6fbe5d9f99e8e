//! Ends of segments and rounds, and what starts after them.

use super::prune::{confidence, should_prune};
use super::state::{PathState, Phase};
use super::{
    BranchBy, Event, FallbackFrom, PruneBy, PrunedLeaves, Refill, Search, Verdicts, branch, budget,
    fallback, positions, view, weights,
};
use crate::error::Result;
use crate::forest::{FinishReason, ForkOrigin};
use crate::ids::{PathId, TreeId};

/// Buffers, so that the end of a round allocates nothing once they have grown.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    live: Vec<PathId>,
    children: Vec<u32>,
    split: branch::Scratch,
    positions: Vec<positions::Position>,
    restarts: Vec<fallback::Restart>,
    fallback: fallback::Scratch,
    weights: weights::Scratch,
}

/// The round that ends.
#[derive(Debug, Clone, Copy)]
struct Round {
    number: u32,
    /// Leaves that the tree still lacks, those that live paths will become included.
    missing: u32,
    /// Leaves of the round that count.
    num_finished: u32,
    /// Live paths that the tree may have for the sake of other trees.
    share: u32,
}

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
        let own = of_tree.path(path);
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

    fn end_segment(
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
                let threshold = &mut state.threshold;
                match config.prune.by {
                    PruneBy::Nothing => {}
                    PruneBy::Score => {
                        threshold.observe_lowest(state.paths[path.index()].lowest_score);
                    }
                    _ => threshold.observe_leaf(&config.prune, of_tree, path),
                }
            }
        }
        state.round += 1;
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
            self.close_tree(tree, scratch);
            self.events.push(Event::TreeDone(tree));
        }
        Ok(())
    }

    /// Ends the tree and writes its weights.
    fn close_tree(&mut self, tree: TreeId, scratch: &mut Scratch) {
        self.trees[tree.index()].is_done = true;
        self.num_open -= 1;
        weights::write(&mut self.forest, tree, &mut scratch.weights);
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
        self.forest.set_not_replayable(tree)?;
        while let Some(&path) = self.trees[tree.index()].live.last() {
            self.forest.finish(tree, path, FinishReason::Abort)?;
            let len = self.forest.path(tree, path)?.len();
            self.trees[tree.index()].remove_live(path, len);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        self.close_tree(tree, &mut scratch);
        self.scratch = scratch;
        Ok(())
    }

    fn branch(&mut self, tree: TreeId, round: Round, scratch: &mut Scratch) -> Result<()> {
        let (config, of_tree) = (&self.config, self.forest.tree(tree)?);
        let Scratch { live, children, split, .. } = scratch;
        let (stream, num_live) = (of_tree.stream(), live.len() as u32);
        let Round { number, missing, num_finished, share } = round;
        let factor = budget::factor(config, stream, number);
        let total = budget::total(config, factor, missing, num_finished, num_live, share);
        if config.branch.by == BranchBy::Even {
            branch::even_split(&config.branch, total, num_live, stream, number, children);
        } else {
            let state = &self.trees[tree.index()];
            let score = |path| state.path(path).score;
            branch::weighted_split(config, of_tree, total, live, score, split, children);
        }
        for (&path, &count) in live.iter().zip(&*children) {
            self.go_on_with(tree, path);
            let at = self.forest.path(tree, path)?.len();
            self.fork_copies(tree, path, at, count - 1, ForkOrigin::Branch, Some(path))?;
        }
        Ok(())
    }

    /// Collects the positions that the token rule forks, of live and just finished paths.
    fn find_positions(&self, tree: TreeId, scratch: &mut Scratch) -> Result<()> {
        let (of_tree, state) = (self.forest.tree(tree)?, &self.trees[tree.index()]);
        scratch.positions.clear();
        for &path in scratch.live.iter().chain(&state.finished) {
            let start = state.path(path).start;
            positions::add(&self.config.branch, of_tree, path, start, &mut scratch.positions);
        }
        positions::sort(&mut scratch.positions);
        Ok(())
    }

    fn fork_positions(&mut self, tree: TreeId, room: u32, scratch: &Scratch) -> Result<()> {
        let mut room = room;
        for position in &scratch.positions {
            let copies = self.config.branch.copies.min(room);
            room -= copies;
            self.fork_copies(tree, position.path, position.at, copies, ForkOrigin::Branch, None)?;
        }
        Ok(())
    }

    /// Finds the restarts of [`Refill::Early`]; how many paths they start.
    fn early_restarts(&self, tree: TreeId, round: Round, scratch: &mut Scratch) -> Result<u32> {
        let fallback = &self.config.fallback;
        scratch.restarts.clear();
        if fallback.refill == Refill::Late || fallback.from == FallbackFrom::Nothing {
            return Ok(0);
        }
        let of_tree = self.forest.tree(tree)?;
        let depths = scratch.live.iter().map(|&path| of_tree.path(path).depth());
        let potential = budget::potential(&self.config, depths);
        let room = round.share.saturating_sub(scratch.live.len() as u32);
        let missing = round.missing.saturating_sub(potential).min(room);
        if missing > 0 {
            self.find_restarts(tree, round.number, missing, scratch)?;
        }
        Ok(scratch.restarts.iter().map(|restart| restart.copies).sum())
    }

    fn find_restarts(
        &self,
        tree: TreeId,
        round: u32,
        missing: u32,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let of_tree = self.forest.tree(tree)?;
        let Scratch { restarts, fallback, .. } = scratch;
        restarts.clear();
        fallback::restarts(&self.config, of_tree, round, missing, fallback, restarts);
        Ok(())
    }

    fn fork_restarts(&mut self, tree: TreeId, scratch: &Scratch) -> Result<()> {
        for &fallback::Restart { path, at, copies } in &scratch.restarts {
            self.fork_copies(tree, path, at, copies, ForkOrigin::Fallback, None)?;
        }
        Ok(())
    }

    fn go_on_with(&mut self, tree: TreeId, path: PathId) {
        self.start(tree, path);
        self.events.push(Event::Continues(tree, path));
    }

    /// Forks `copies` paths at one place; the first leads unless there is a leader.
    pub(super) fn fork_copies(
        &mut self,
        tree: TreeId,
        source: PathId,
        at: u32,
        copies: u32,
        origin: ForkOrigin,
        leader: Option<PathId>,
    ) -> Result<()> {
        let mut leader = leader;
        for _ in 0..copies {
            let path = self.forest.fork(tree, source, at, origin)?;
            self.start(tree, path);
            let leader = *leader.get_or_insert(path);
            self.events.push(Event::Forked { tree, path, leader });
        }
        Ok(())
    }

    /// Starts the path's next segment, or the rest of the one that it was forked in.
    pub(super) fn start(&mut self, tree: TreeId, path: PathId) {
        let of_tree = &self.forest.trees()[tree.index()];
        let len = of_tree.path(path).len();
        let boundary = view::boundary(of_tree, path, len);
        let segment_len = self.config.segment_len;
        let begin = if len - boundary < segment_len { boundary } else { len };
        let state = &mut self.trees[tree.index()];
        let segment_end = begin.saturating_add(segment_len).min(state.max_len);
        if path.index() == state.paths.len() {
            state.paths.push(PathState::default());
            state.live.push(path);
            state.tokens.fork(len - state.prompt_len);
        }
        let own = state.path_mut(path);
        (own.phase, own.start) = (Phase::Runs { segment_end }, len);
        state.num_running += 1;
    }
}
