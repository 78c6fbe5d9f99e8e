//! What starts when a round ends: next segments, branches, forks at tokens, restarts.

use super::state::{PathState, Phase};
use super::{
    BranchBy, Event, FallbackFrom, Refill, Search, branch, budget, fallback, positions, view,
    weights,
};
use crate::error::Result;
use crate::forest::ForkOrigin;
use crate::ids::{PathId, TreeId};

/// Buffers, so that the end of a round allocates nothing once they have grown.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    pub(super) live: Vec<PathId>,
    pub(super) children: Vec<u32>,
    pub(super) split: branch::Scratch,
    pub(super) positions: Vec<positions::Position>,
    pub(super) restarts: Vec<fallback::Restart>,
    pub(super) fallback: fallback::Scratch,
    pub(super) weights: weights::Scratch,
}

/// The round that ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    pub(super) number: u32,
    /// Leaves that the tree still lacks, those that live paths will become included.
    pub(super) missing: u32,
    /// Leaves of the round that count.
    pub(super) num_finished: u32,
    /// Live paths that the tree may have for the sake of other trees.
    pub(super) share: u32,
}

impl Search {
    pub(super) fn branch(
        &mut self,
        tree: TreeId,
        round: Round,
        scratch: &mut Scratch,
    ) -> Result<()> {
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
    pub(super) fn find_positions(&self, tree: TreeId, scratch: &mut Scratch) -> Result<()> {
        let (of_tree, state) = (self.forest.tree(tree)?, &self.trees[tree.index()]);
        scratch.positions.clear();
        for &path in scratch.live.iter().chain(&state.finished) {
            let start = state.path(path).start;
            positions::add(&self.config.branch, of_tree, path, start, &mut scratch.positions);
        }
        positions::sort(&mut scratch.positions);
        Ok(())
    }

    pub(super) fn fork_positions(
        &mut self,
        tree: TreeId,
        room: u32,
        scratch: &Scratch,
    ) -> Result<()> {
        let mut room = room;
        for position in &scratch.positions {
            let copies = self.config.branch.copies.min(room);
            room -= copies;
            self.fork_copies(tree, position.path, position.at, copies, ForkOrigin::Branch, None)?;
        }
        Ok(())
    }

    /// Finds the restarts of [`Refill::Early`]; how many paths they start.
    pub(super) fn early_restarts(
        &self,
        tree: TreeId,
        round: Round,
        scratch: &mut Scratch,
    ) -> Result<u32> {
        let fallback = &self.config.fallback;
        scratch.restarts.clear();
        if fallback.refill == Refill::Late || fallback.from == FallbackFrom::Nothing {
            return Ok(0);
        }
        let of_tree = self.forest.tree(tree)?;
        let max_len = self.trees[tree.index()].max_len;
        let rounds_left = scratch.live.iter().map(|&path| {
            let own = of_tree.own(path);
            let by_length = (max_len - own.len()).div_ceil(self.config.segment_len);
            self.config.max_depth.saturating_sub(own.depth()).min(by_length)
        });
        let potential = budget::potential(&self.config, rounds_left);
        let room = round.share.saturating_sub(scratch.live.len() as u32);
        let missing = round.missing.saturating_sub(potential).min(room);
        if missing > 0 {
            self.find_restarts(tree, round.number, missing, scratch)?;
        }
        Ok(scratch.restarts.iter().map(|restart| restart.copies).sum())
    }

    pub(super) fn find_restarts(
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

    pub(super) fn fork_restarts(&mut self, tree: TreeId, scratch: &Scratch) -> Result<()> {
        for &fallback::Restart { path, at, copies } in &scratch.restarts {
            self.fork_copies(tree, path, at, copies, ForkOrigin::Fallback, None)?;
        }
        Ok(())
    }

    pub(super) fn go_on_with(&mut self, tree: TreeId, path: PathId) {
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
            self.events.push(Event::Forked { tree, path, source, leader });
        }
        Ok(())
    }

    /// Starts the path's next segment, or the rest of the one that it was forked in.
    pub(super) fn start(&mut self, tree: TreeId, path: PathId) {
        let of_tree = &self.forest.trees()[tree.index()];
        let len = of_tree.own(path).len();
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
