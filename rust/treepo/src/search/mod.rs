//! The search: a pure rule over the forest. Ended segments of one tree in, forks out.
//!
//! It works in rounds, tree by tree: when every live path of a tree has ended its segment, the
//! round ends and the tree branches, falls back or is done. There is no barrier across trees. The
//! search knows nothing of memory or batches; any engine can run the segments.
//!
//! A path that is forked within a segment ends that segment where the path that it left would have
//! ended it, so segments stay aligned in every tree.
//!
//! Source: `TreePO` (arXiv 2508.17445), algorithm 1; the rules beyond it name theirs in
//! [`SearchConfig`]. A tree that nothing is lacking has exactly `width` leaves (law T2).

mod branch;
mod budget;
mod caller;
mod check;
mod config;
mod fallback;
mod grow;
mod policy;
mod positions;
mod preset;
mod prune;
mod repetition;
mod report;
mod rounds;
mod snapshot;
mod state;
mod stop;
mod text;
mod view;
mod walk;
mod weights;

pub use crate::forest::Dependence;
pub use caller::Verdict;
pub use config::{
    Alignment, Boxed, BranchBy, BranchConfig, BudgetConfig, FallbackAt, FallbackConfig,
    FallbackFrom, Opportunistic, Prefer, PruneBy, PruneConfig, PrunedLeaves, Refill, Remainder,
    Repetition, SearchConfig, StopConfig, TemperatureSchedule, Total, Transfer, Verdicts,
};
pub use policy::Policy;
pub use preset::Preset;
pub(crate) use snapshot::SearchSnapshot;
pub use text::TokenTexts;
pub(crate) use view::boundary;

use crate::error::{Error, Result};
use crate::forest::{Forest, ForkOrigin, SampledToken, check_number};
use crate::ids::{PathId, TreeId};
use crate::key::Purpose;
use grow::Scratch;
use state::{Phase, TreeState};
use stop::StopRules;

/// Paths and tokens that room is made for when a tree is added. A larger tree makes room as it
/// grows.
pub(crate) const MAX_RESERVED_PATHS: u32 = 1 << 16;
const MAX_RESERVED_TOKENS: usize = 1 << 17;

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

/// What a call led to, in order. The scheduler follows these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The path ended its segment and waits for the rest of its round or for a verdict.
    Waits(TreeId, PathId),
    /// The path is a leaf.
    Finished(TreeId, PathId),
    /// The path is a leaf that was given up.
    Pruned(TreeId, PathId),
    /// The path goes on with a next segment.
    Continues(TreeId, PathId),
    /// `path` has been forked and has the same tokens as `leader`, which has not gone on either.
    Forked {
        /// The tree.
        tree: TreeId,
        /// The new path.
        path: PathId,
        /// The path that it left; it may have ended.
        source: PathId,
        /// A path with the same tokens that runs at the same time, or the new path itself.
        leader: PathId,
    },
    /// The tree is done.
    TreeDone(TreeId),
}

/// The tree search over a forest that it owns.
#[derive(Debug, Clone)]
pub struct Search {
    config: SearchConfig,
    seed: u64,
    policy_version: u32,
    forest: Forest,
    /// None until the first tree comes, as the texts may come before it.
    stop: Option<StopRules>,
    trees: Vec<TreeState>,
    num_open: u32,
    events: Vec<Event>,
    scratch: Scratch,
}

impl Search {
    /// A search without trees.
    ///
    /// # Errors
    /// `InvalidConfig` naming the field.
    pub fn new(config: SearchConfig, seed: u64) -> Result<Self> {
        config.check()?;
        Ok(Self {
            config,
            seed,
            policy_version: 0,
            forest: Forest::new(),
            stop: None,
            trees: Vec::new(),
            num_open: 0,
            events: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    /// The configuration.
    pub fn config(&self) -> &SearchConfig {
        &self.config
    }

    /// The last position of a finished path at which the search may fork it.
    pub(crate) fn last_fork(&self, tree: TreeId, path: PathId) -> Result<u32> {
        let of_tree = self.forest.tree(tree)?;
        let fallback = &self.config.fallback;
        if positions::is_token_rule(self.config.branch.by) {
            return Ok(of_tree.own(path).len());
        }
        Ok(match fallback.from {
            FallbackFrom::Nothing => of_tree.prompt_len,
            _ if fallback.cuts_at_boundaries() => of_tree.last_boundary(path),
            _ => of_tree.own(path).len(),
        })
    }

    /// The forest as it is.
    pub fn forest(&self) -> &Forest {
        &self.forest
    }

    /// Gives the forest away.
    pub fn into_forest(self) -> Forest {
        self.forest
    }

    /// Sets the version of the weights that sample from here on; it is recorded for each token.
    ///
    /// # Errors
    /// `InvalidInput` above `i32::MAX`.
    pub fn set_policy_version(&mut self, version: u32) -> Result<()> {
        check_number("version", version)?;
        self.policy_version = version;
        Ok(())
    }

    /// The version of the weights that sample.
    pub fn policy_version(&self) -> u32 {
        self.policy_version
    }

    /// Gives the rules about text the bytes of every token.
    ///
    /// # Errors
    /// `InvalidInput` once there is a tree, `InvalidConfig` for a stop rule out of its range.
    pub fn set_texts(&mut self, texts: TokenTexts) -> Result<()> {
        if !self.trees.is_empty() {
            let message = "the texts of the tokens come before the first tree".into();
            return Err(Error::InvalidInput(message));
        }
        let texts = Some(texts).filter(|texts| !texts.is_empty());
        self.stop = Some(StopRules::new(&self.config, texts)?);
        Ok(())
    }

    /// The longest that a path behind this prompt may get.
    ///
    /// # Errors
    /// `PromptTooLong` if nothing can be sampled.
    pub fn max_path_len(&self, prompt_len: u32) -> Result<u32> {
        let max_model_len = self.config.max_model_len;
        if prompt_len >= max_model_len {
            return Err(Error::PromptTooLong { prompt_len, max_model_len });
        }
        Ok(prompt_len.saturating_add(self.config.max_completion_len()).min(max_model_len))
    }

    /// Adds a tree with the caller's key and starts its first paths.
    ///
    /// # Errors
    /// `PromptTooLong`, `InvalidInput` for an empty prompt, `InvalidConfig` for a rule about text
    /// without [`Search::set_texts`].
    pub fn add_tree(&mut self, key: u64, prompt: &[u32]) -> Result<TreeId> {
        let prompt_len = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let max_len = self.max_path_len(prompt_len)?;
        if self.stop.is_none() {
            self.stop = Some(StopRules::new(&self.config, None)?);
        }
        let tree = self.forest.add_tree(self.seed, key, prompt)?;
        self.reserve(tree, max_len - prompt_len);
        self.trees.push(TreeState::new(&self.config, prompt_len, max_len));
        self.num_open += 1;
        self.forest.set_dependence(tree, self.config.dependence())?;
        if self.config.opportunistic == Opportunistic::StepTokens {
            self.forest.set_not_replayable(tree)?;
        }
        let root = PathId(0);
        self.start(tree, root);
        self.events.push(Event::Continues(tree, root));
        let copies = self.initial_divergence(tree)? - 1;
        self.fork_copies(tree, root, prompt_len, copies, ForkOrigin::Initial, Some(root))?;
        Ok(tree)
    }

    /// Makes room for all that the tree may become, as far as that is within reason, so that it
    /// grows without allocation. Room that is never used is never touched; where the system does
    /// not promise it, the tree does without.
    fn reserve(&mut self, tree: TreeId, completion_len: u32) {
        let num_paths = self.config.max_paths().min(MAX_RESERVED_PATHS) as usize;
        let num_marks = (num_paths * self.config.max_depth as usize).min(MAX_RESERVED_TOKENS);
        let num_tokens = (num_paths * completion_len as usize).min(MAX_RESERVED_TOKENS);
        let _ = self.forest.reserve_tree(tree, num_paths, num_tokens, num_marks);
    }

    /// Paths that start at the prompt, the root's included.
    fn initial_divergence(&self, tree: TreeId) -> Result<u32> {
        let config = &self.config;
        let stream = self.forest.tree(tree)?.stream();
        let (low, high) = (config.initial_divergence, config.max_initial_divergence);
        let drawn = budget::draw(low, high, stream, Purpose::InitialDivergence, 0);
        let affordable = budget::width(config, &self.trees[tree.index()]);
        Ok(drawn.min(affordable).min(budget::share(config, self.num_open)).max(1))
    }

    /// Whether every tree is done.
    pub fn is_done(&self) -> bool {
        self.num_open == 0
    }

    /// Whether this tree is done; false for a tree that does not exist.
    pub fn is_tree_done(&self, tree: TreeId) -> bool {
        self.trees.get(tree.index()).is_some_and(|state| state.is_done)
    }

    /// Leaves that a tree still has to get. O(1).
    pub(crate) fn num_missing(&self, tree: TreeId) -> u32 {
        self.config.width.saturating_sub(self.trees[tree.index()].num_leaves)
    }

    /// The segments that wait to be run, tree by tree. O(trees + live paths).
    pub fn segments(&self) -> Vec<Segment> {
        let mut segments = Vec::new();
        for (t, state) in self.trees.iter().enumerate() {
            let tree = TreeId(t as u32);
            for &path in &state.live {
                if let Phase::Runs { segment_end } = state.path(path).phase {
                    let len = self.forest.trees()[t].own(path).len();
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
        let state = &mut self.trees[tree.index()];
        let Phase::Runs { segment_end } = state.path(path).phase else {
            let message = format!("path {path} of tree {tree} has no running segment");
            return Err(Error::InvalidInput(message));
        };
        self.forest.push_token(tree, path, token, self.policy_version)?;
        state.tokens.push();
        self.follow_token(tree, path, segment_end)
    }

    /// Takes what has happened since the last call, in order; [`Search::complete_segment`] drops
    /// what was not taken. Callers that push tokens take events now and then, or they add up.
    pub fn drain_events(&mut self) -> std::vec::Drain<'_, Event> {
        self.events.drain(..)
    }

    /// Takes the events in exchange for an empty buffer, so that no call allocates.
    pub(crate) fn swap_events(&mut self, buffer: &mut Vec<Event>) {
        buffer.clear();
        std::mem::swap(&mut self.events, buffer);
    }
}
