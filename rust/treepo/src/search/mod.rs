//! The search: a pure rule over the forest. Ended segments of one tree in, forks out.
//!
//! It works in rounds, tree by tree: when every live path of a tree has ended its segment, the
//! round ends and the tree branches, falls back or is done. There is no barrier across trees. The
//! search knows nothing of memory or batches; any engine can run the segments.
//!
//! Source: `TreePO` (arXiv 2508.17445), algorithm 1: a fixed initial divergence, even branching
//! with budget transfer, fallback from answered leaves, exactly `width` leaves (law T2).

mod branch;
mod config;
mod fallback;
mod stop;

pub use config::{
    Alignment, Boxed, BranchBy, BranchConfig, BudgetConfig, FallbackAt, FallbackConfig,
    FallbackFrom, Opportunistic, Prefer, PruneBy, PruneConfig, PrunedLeaves, Refill, Remainder,
    Repetition, SearchConfig, StopConfig, TemperatureSchedule, Total, Transfer, Verdicts,
};

use crate::error::{Error, Result, law};
use crate::forest::{FinishReason, Forest, ForkOrigin, SampledToken};
use crate::ids::{PathId, TreeId};

/// A segment that waits to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The tree.
    pub tree: TreeId,
    /// The path that the segment continues.
    pub path: PathId,
    /// Tokens that the segment has at most from here.
    pub max_new_tokens: u32,
}

/// What a pushed token led to, in order. The scheduler follows these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The path ended its segment and waits for the rest of its round.
    Waits(TreeId, PathId),
    /// The path is a leaf.
    Finished(TreeId, PathId),
    /// The path goes on with a next segment.
    Continues(TreeId, PathId),
    /// `path` has been forked and has the same tokens as `leader`, which has not gone on either.
    Forked {
        /// The tree.
        tree: TreeId,
        /// The new path.
        path: PathId,
        /// A path with the same tokens that runs at the same time, or the new path itself.
        leader: PathId,
    },
    /// The tree is done.
    TreeDone(TreeId),
}

/// State of one path in the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its segment runs; it ends before this position at the latest.
    Runs { segment_end: u32 },
    /// Its segment has ended and the round has not.
    Waits,
    /// It is a leaf.
    Finished,
}

/// State of one tree in the search.
#[derive(Debug, Clone)]
struct TreeState {
    /// The longest a path may be.
    max_len: u32,
    /// State by path.
    paths: Vec<State>,
    /// Live paths, ascending.
    live: Vec<PathId>,
    /// Live paths whose segment has not ended.
    num_running: u32,
    /// Leaves that count towards the width.
    num_leaves: u32,
    /// Leaves of the current round that count.
    num_finished: u32,
    round: u32,
    is_done: bool,
}

/// The tree search over a forest that it owns.
#[derive(Debug, Clone)]
pub struct Search {
    config: SearchConfig,
    seed: u64,
    policy_version: u32,
    forest: Forest,
    trees: Vec<TreeState>,
    events: Vec<Event>,
}

impl Search {
    /// A search without trees.
    ///
    /// # Errors
    /// `InvalidConfig` naming the field.
    pub fn new(config: SearchConfig, seed: u64) -> Result<Self> {
        config.check()?;
        let forest = Forest::new();
        let (trees, events) = (Vec::new(), Vec::new());
        Ok(Self { config, seed, policy_version: 0, forest, trees, events })
    }

    /// The configuration.
    pub fn config(&self) -> &SearchConfig {
        &self.config
    }

    /// The forest as it is.
    pub fn forest(&self) -> &Forest {
        &self.forest
    }

    /// Gives the forest away.
    pub fn into_forest(self) -> Forest {
        self.forest
    }

    /// Whether a path waits for the caller's verdict.
    pub fn awaits_verdicts(&self) -> bool {
        false
    }

    /// Sets the version of the weights that sample from here on; it is recorded for each token.
    pub fn set_policy_version(&mut self, version: u32) {
        self.policy_version = version;
    }

    /// The version of the weights that sample.
    pub fn policy_version(&self) -> u32 {
        self.policy_version
    }

    /// The longest that a path with this prompt can get.
    ///
    /// # Errors
    /// `PromptTooLong` if there is no room for a completion.
    pub fn max_path_len(&self, prompt_len: u32) -> Result<u32> {
        let max_model_len = self.config.max_model_len;
        if prompt_len >= max_model_len {
            return Err(Error::PromptTooLong { prompt_len, max_model_len });
        }
        Ok(prompt_len.saturating_add(self.config.max_completion_len()).min(max_model_len))
    }

    /// Adds a tree and forks its initial divergence.
    ///
    /// # Errors
    /// `PromptTooLong`, or `InvalidInput` for an empty prompt.
    pub fn add_tree(&mut self, key: u64, prompt: &[u32]) -> Result<TreeId> {
        let max_len = self.max_path_len(prompt.len() as u32)?;
        let tree = self.forest.add_tree(self.seed, key, prompt)?;
        self.trees.push(TreeState {
            max_len,
            paths: Vec::new(),
            live: Vec::new(),
            num_running: 0,
            num_leaves: 0,
            num_finished: 0,
            round: 0,
            is_done: false,
        });
        let root = PathId(0);
        self.start(tree, root);
        self.events.push(Event::Continues(tree, root));
        let copies = self.config.initial_divergence.min(self.config.width) - 1;
        self.fork(tree, root, prompt.len() as u32, copies, ForkOrigin::Initial, Some(root))?;
        Ok(tree)
    }

    /// Whether every tree is done.
    pub fn is_done(&self) -> bool {
        self.trees.iter().all(|tree| tree.is_done)
    }

    /// Whether this tree is done.
    pub fn is_tree_done(&self, tree: TreeId) -> bool {
        self.trees[tree.index()].is_done
    }

    /// Leaves that a tree still has to get. O(1).
    pub(crate) fn num_missing(&self, tree: TreeId) -> u32 {
        self.config.width.saturating_sub(self.trees[tree.index()].num_leaves)
    }

    /// The segments that wait to be run, tree by tree. O(live paths of all trees).
    pub fn segments(&self) -> Vec<Segment> {
        let mut segments = Vec::new();
        for (t, state) in self.trees.iter().enumerate() {
            let tree = TreeId(t as u32);
            for &path in &state.live {
                if let State::Runs { segment_end } = state.paths[path.index()] {
                    let len = self.forest.trees()[t].path(path).len();
                    segments.push(Segment { tree, path, max_new_tokens: segment_end - len });
                }
            }
        }
        segments
    }

    /// Appends one sampled token; the path's segment, the tree's round and the tree may end with it.
    ///
    /// # Errors
    /// `InvalidInput` unless the path runs, `NotFinite` for bad numbers; nothing has changed then.
    pub fn push_token(&mut self, tree: TreeId, path: PathId, token: SampledToken) -> Result<()> {
        self.forest.path(tree, path)?;
        let state = &self.trees[tree.index()];
        let State::Runs { segment_end } = state.paths[path.index()] else {
            let message = format!("path {path} of tree {tree} has no running segment");
            return Err(Error::InvalidInput(message));
        };
        self.forest.push_token(tree, path, token, self.policy_version)?;
        let own = self.forest.path(tree, path)?;
        let full = own.len() == state.max_len;
        let segment_ends = own.len() == segment_end;
        let depth = own.depth() + 1;
        let reason = stop::finish_reason(&self.config, token.id, full, segment_ends, depth);
        if reason.is_some() || segment_ends {
            self.end_segment(tree, path, reason)?;
        }
        Ok(())
    }

    /// Appends a whole segment: it ends at its limit or with its last token, an end-of-sequence
    /// token. A caller may also report a segment in several parts.
    ///
    /// # Errors
    /// As [`Search::push_token`], and `InvalidInput` for tokens behind the segment's end; nothing
    /// has changed then.
    pub fn complete_segment(
        &mut self,
        tree: TreeId,
        path: PathId,
        tokens: &[SampledToken],
    ) -> Result<()> {
        let own = self.forest.path(tree, path)?;
        let room = match self.trees[tree.index()].paths[path.index()] {
            State::Runs { segment_end } => (segment_end - own.len()) as usize,
            State::Waits | State::Finished => 0,
        };
        let is_eos = |token: &SampledToken| self.config.eos_token_ids.contains(&token.id);
        let len = tokens.iter().position(is_eos).map_or(room, |eos| room.min(eos + 1));
        if tokens.len() > len {
            return Err(Error::InvalidInput(format!(
                "{} tokens for path {path} of tree {tree}, whose segment ends after {len}",
                tokens.len()
            )));
        }
        tokens.iter().try_for_each(|token| token.check(tree, path))?;
        self.events.clear(); // `segments` says all that a caller of this function needs
        tokens.iter().try_for_each(|&token| self.push_token(tree, path, token))
    }

    /// Ends all live paths of a tree with [`FinishReason::Abort`].
    pub fn abort_tree(&mut self, tree: TreeId) -> Result<()> {
        self.forest.set_not_replayable(tree)?;
        let state = &mut self.trees[tree.index()];
        state.is_done = true;
        state.num_running = 0;
        for path in std::mem::take(&mut state.live) {
            state.paths[path.index()] = State::Finished;
            self.forest.finish(tree, path, FinishReason::Abort)?;
        }
        Ok(())
    }

    /// Takes what has happened since the last call, in order.
    pub fn drain_events(&mut self) -> std::vec::Drain<'_, Event> {
        self.events.drain(..)
    }

    /// Takes the events in exchange for an empty buffer, so that no call allocates.
    pub(crate) fn swap_events(&mut self, buffer: &mut Vec<Event>) {
        buffer.clear();
        std::mem::swap(&mut self.events, buffer);
    }

    fn end_segment(
        &mut self,
        tree: TreeId,
        path: PathId,
        reason: Option<FinishReason>,
    ) -> Result<()> {
        self.forest.mark(tree, path)?;
        let state = &mut self.trees[tree.index()];
        state.num_running -= 1;
        if let Some(reason) = reason {
            self.forest.finish(tree, path, reason)?;
            state.paths[path.index()] = State::Finished;
            state.live.retain(|&live| live != path);
            if reason.counts() {
                state.num_leaves += 1;
                state.num_finished += 1;
            }
            self.events.push(Event::Finished(tree, path));
        } else {
            state.paths[path.index()] = State::Waits;
            self.events.push(Event::Waits(tree, path));
        }
        if state.num_running == 0 { self.end_round(tree) } else { Ok(()) }
    }

    fn end_round(&mut self, tree: TreeId) -> Result<()> {
        let state = &mut self.trees[tree.index()];
        let num_finished = std::mem::take(&mut state.num_finished);
        state.round += 1;
        let round = state.round;
        let missing = self.config.width - state.num_leaves.min(self.config.width);
        if !state.live.is_empty() {
            self.branch(tree, round, missing, num_finished)
        } else if missing > 0 && self.config.fallback.from != FallbackFrom::Nothing {
            self.fall_back(tree, round, missing)
        } else {
            state.is_done = true;
            self.events.push(Event::TreeDone(tree));
            Ok(())
        }
    }

    fn branch(&mut self, tree: TreeId, round: u32, missing: u32, num_finished: u32) -> Result<()> {
        let live = self.trees[tree.index()].live.clone();
        let stream = self.forest.tree(tree)?.stream();
        let budget = branch::budget(&self.config, missing, num_finished, live.len() as u32);
        let children = branch::even_split(budget, live.len() as u32, stream, round);
        for (path, count) in live.into_iter().zip(children) {
            self.start(tree, path);
            self.events.push(Event::Continues(tree, path));
            let at = self.forest.path(tree, path)?.len();
            self.fork(tree, path, at, count - 1, ForkOrigin::Branch, Some(path))?;
        }
        Ok(())
    }

    fn fall_back(&mut self, tree: TreeId, round: u32, missing: u32) -> Result<()> {
        let restarts = fallback::restarts(&self.config, self.forest.tree(tree)?, round, missing);
        for restart in restarts {
            self.fork(tree, restart.path, restart.at, restart.copies, ForkOrigin::Fallback, None)?;
        }
        Ok(())
    }

    fn fork(
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

    /// Starts the path's next segment.
    fn start(&mut self, tree: TreeId, path: PathId) {
        let len = self.forest.trees()[tree.index()].path(path).len();
        let state = &mut self.trees[tree.index()];
        let segment_end = len.saturating_add(self.config.segment_len).min(state.max_len);
        if path.index() == state.paths.len() {
            state.paths.push(State::Waits);
            state.live.push(path);
        }
        state.paths[path.index()] = State::Runs { segment_end };
        state.num_running += 1;
    }

    /// Checks the laws of the search and of its forest in O(tokens).
    ///
    /// # Errors
    /// `LawBroken` with the first law that does not hold.
    pub fn check(&self) -> Result<()> {
        self.forest.check()?;
        for (t, state) in self.trees.iter().enumerate() {
            self.check_tree(t, state)?;
        }
        Ok(())
    }

    fn check_tree(&self, t: usize, state: &TreeState) -> Result<()> {
        let tree = &self.forest.trees()[t];
        let width = self.config.width;
        let leaves = tree.paths().iter().filter_map(|path| path.finish);
        let counted = leaves.clone().filter(|reason| reason.counts()).count() as u32;
        law(counted == state.num_leaves, "T2", || format!("tree {t}: {counted} leaves"))?;
        law(counted + state.live.len() as u32 <= width, "T2", || {
            format!("tree {t}: {counted} leaves and {} live paths", state.live.len())
        })?;
        let aborted = leaves.clone().any(|reason| !reason.counts());
        let may_end_short = aborted || self.config.fallback.from == FallbackFrom::Nothing;
        law(!state.is_done || counted == width || may_end_short, "T2", || {
            format!("tree {t} is done with {counted} of {width} leaves")
        })?;
        for (p, path) in tree.paths().iter().enumerate() {
            let finished = state.paths[p] == State::Finished;
            law(finished == path.finish.is_some(), "T5", || format!("tree {t}, path {p}"))?;
            let fits = path.len() <= state.max_len && path.depth() <= self.config.max_depth;
            law(fits, "T1", || format!("tree {t}, path {p}: length {}", path.len()))?;
        }
        Ok(())
    }
}
