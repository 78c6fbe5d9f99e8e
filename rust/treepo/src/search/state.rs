//! What the search knows of a tree and its paths besides the forest.

use serde::{Deserialize, Serialize};

use super::budget::Tokens;
use super::prune::Threshold;
use super::{MAX_RESERVED_PATHS, PruneBy, SearchConfig};
use crate::forest::Tree;
use crate::ids::PathId;

/// Where a path is in its round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Its segment runs; it ends before this position at the latest.
    Runs { segment_end: u32 },
    /// Its segment has ended and the caller has not judged it.
    Pending,
    /// Its segment has ended and the round has not.
    Waits,
    /// It is a leaf.
    #[default]
    Finished,
}

/// State of one path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct PathState {
    pub(super) phase: Phase,
    /// Where the path's own tokens of its current or last segment begin.
    pub(super) start: u32,
    /// The caller's score of the last segment; 0 without one.
    pub(super) score: f32,
}

/// The caller's score of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Score {
    pub(super) path: PathId,
    /// Where the segment ends.
    pub(super) at: u32,
    pub(super) value: f32,
}

/// State of one tree.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TreeState {
    pub(super) prompt_len: u32,
    /// The longest a path may be.
    pub(super) max_len: u32,
    /// State by path.
    pub(super) paths: Vec<PathState>,
    /// Live paths, ascending.
    pub(super) live: Vec<PathId>,
    /// Leaves of the current round that were not given up, in order of arrival.
    pub(super) finished: Vec<PathId>,
    /// Live paths whose segment runs.
    pub(super) num_running: u32,
    /// Live paths that wait for a verdict.
    pub(super) num_pending: u32,
    /// Leaves that count towards the width.
    pub(super) num_leaves: u32,
    /// Leaves of the current round that count.
    pub(super) num_finished: u32,
    /// Pruned leaves that do not count as others replace them.
    pub(super) num_replaced: u32,
    /// Pruned leaves that do not count as the caller went back on them.
    pub(super) num_rewound: u32,
    pub(super) tokens: Tokens,
    /// The confidence below which paths are pruned.
    pub(super) threshold: Threshold,
    /// All scores, while a warm-up needs them.
    pub(super) scores: Vec<Score>,
    pub(super) round: u32,
    pub(super) is_done: bool,
}

impl TreeState {
    pub(super) fn new(config: &SearchConfig, prompt_len: u32, max_len: u32) -> Self {
        let room = config.max_paths().min(MAX_RESERVED_PATHS) as usize;
        let warms_up = config.prune.by == PruneBy::Score && config.prune.warmup_leaves > 0;
        Self {
            prompt_len,
            max_len,
            paths: Vec::with_capacity(room),
            live: Vec::with_capacity(room),
            finished: Vec::with_capacity(room),
            num_running: 0,
            num_pending: 0,
            num_leaves: 0,
            num_finished: 0,
            num_replaced: 0,
            num_rewound: 0,
            tokens: Tokens::default(),
            threshold: Threshold::new(&config.prune),
            scores: Vec::with_capacity(if warms_up { room } else { 0 }),
            round: 0,
            is_done: false,
        }
    }

    pub(super) fn path(&self, path: PathId) -> &PathState {
        &self.paths[path.index()]
    }

    pub(super) fn path_mut(&mut self, path: PathId) -> &mut PathState {
        &mut self.paths[path.index()]
    }

    /// Leaves and live paths together: what the width limits.
    pub(super) fn num_taken(&self) -> u32 {
        self.num_leaves + self.live.len() as u32
    }

    /// Whether the round ends: no segment runs and none waits for a verdict.
    pub(super) fn ends_round(&self) -> bool {
        !self.is_done && self.num_running == 0 && self.num_pending == 0
    }

    /// The lowest score of the segments that the path's sequence holds. O(scores * ancestors).
    pub(super) fn lowest_score(&self, tree: &Tree, path: PathId) -> Option<f32> {
        let is_on_path = |score: &&Score| {
            let (mut current, mut limit) = (path, tree.own(path).len());
            while current != score.path {
                let Some(parent) = tree.own(current).parent() else { return false };
                (limit, current) = (limit.min(tree.own(current).at), parent);
            }
            score.at <= limit
        };
        let values = self.scores.iter().filter(is_on_path).map(|score| score.value);
        values.min_by(f32::total_cmp)
    }

    /// Takes the path out of the live ones; `len` is its length.
    pub(super) fn remove_live(&mut self, path: PathId, len: u32) {
        match std::mem::take(&mut self.path_mut(path).phase) {
            Phase::Runs { .. } => self.num_running -= 1,
            Phase::Pending => self.num_pending -= 1,
            Phase::Waits | Phase::Finished => {}
        }
        if let Ok(place) = self.live.binary_search(&path) {
            self.live.remove(place);
        }
        self.tokens.finish(len - self.prompt_len);
    }
}
