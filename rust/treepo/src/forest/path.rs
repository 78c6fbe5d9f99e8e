//! One path: where it began, how it ended and where its tokens and marks are.

use super::links::List;
use super::store::Span;
use crate::error::{Error, Result};
use crate::ids::{PathId, TreeId};
use crate::key::Stream;

/// Where a token comes from. Only sampled tokens enter a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// Part of the prompt.
    Prompt = 0,
    /// Sampled by the model.
    Sampled = 1,
    /// Given to the model in mid-path: the output of a tool or the user's text.
    Given = 2,
}

impl TokenKind {
    /// The kind with this number, if there is one.
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::Prompt, Self::Sampled, Self::Given].into_iter().find(|kind| *kind as u8 == value)
    }
}

/// Why a path ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FinishReason {
    /// An end-of-sequence token.
    Stop = 1,
    /// The completion or the model's context is full.
    Length = 2,
    /// The path has `max_depth` segments.
    Depth = 3,
    /// The text repeats itself.
    Repetition = 4,
    /// A policy gave the path up.
    Pruned = 5,
    /// The caller ended it.
    Abort = 6,
}

impl FinishReason {
    /// Whether such a leaf was sampled to its end: one that was given up or aborted was not.
    pub fn counts(self) -> bool {
        !matches!(self, Self::Pruned | Self::Abort)
    }

    /// The reason with this number; 0 and unknown numbers have none.
    pub fn from_u8(value: u8) -> Option<Self> {
        use FinishReason::{Abort, Depth, Length, Pruned, Repetition, Stop};
        [Stop, Length, Depth, Repetition, Pruned, Abort].into_iter().find(|r| *r as u8 == value)
    }
}

/// Why a path was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ForkOrigin {
    /// The tree's first path.
    Root = 0,
    /// The initial divergence at the prompt.
    Initial = 1,
    /// A branch at the end of a round.
    Branch = 2,
    /// A restart from an earlier boundary because too few paths live.
    Fallback = 3,
    /// A call of the embedding program.
    Caller = 4,
}

impl ForkOrigin {
    /// The origin with this number, if there is one.
    pub fn from_u8(value: u8) -> Option<Self> {
        use ForkOrigin::{Branch, Caller, Fallback, Initial, Root};
        [Root, Initial, Branch, Fallback, Caller].into_iter().find(|o| *o as u8 == value)
    }
}

/// What the forks of a tree depended on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Dependence {
    /// Only on tokens before the fork: whether a token was sampled depends on its prefix alone.
    #[default]
    Prefix = 0,
    /// Also on sampled tokens behind the fork, so that what was sampled there had a say in how
    /// often the prefix was continued.
    SampledToken = 1,
}

impl Dependence {
    /// The dependence with this number, if there is one.
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::Prefix, Self::SampledToken].into_iter().find(|d| *d as u8 == value)
    }
}

/// A sampled token and what was known when it was sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub id: u32,
    /// Natural log of its probability in the distribution that it was sampled from (temperature
    /// and truncation applied, renormalised).
    pub logprob: f32,
    /// Entropy in nats of the full-vocabulary distribution at the sampling temperature.
    pub entropy: f32,
}

impl SampledToken {
    /// Returns `NotFinite` if a number is NaN or infinite, `InvalidInput` for an id above
    /// `i32::MAX`.
    pub fn check(&self, tree: TreeId, path: PathId) -> Result<()> {
        check_number("token id", self.id)?;
        for (name, value) in [("log-probability", self.logprob), ("entropy", self.entropy)] {
            if !value.is_finite() {
                return Err(Error::NotFinite { tree, path, what: format!("{name} is {value}") });
            }
        }
        Ok(())
    }
}

/// Refuses an id or a version that the columns, which are `i32`, cannot hold.
pub(crate) fn check_number(what: &str, number: u32) -> Result<()> {
    if number > i32::MAX as u32 {
        let message = format!("{what} {number} is above {}", i32::MAX);
        return Err(Error::InvalidInput(message));
    }
    Ok(())
}

/// Length that no path exceeds: columns count tokens in `i32`.
pub(super) const MAX_LEN: u32 = i32::MAX as u32;

/// Paths that a tree has at most: columns number paths in `i32`.
pub(super) const MAX_PATHS: usize = i32::MAX as usize;

/// Stands for "no path".
const NONE: u32 = u32::MAX;

/// One path of a tree: plain data of at most 64 bytes. Its tokens, marks and runs lie in stores of
/// the tree, which reads them ([`super::Tree::own_ids`] and others).
#[derive(Debug, Clone)]
pub struct Path {
    /// The path's stream of random numbers.
    pub stream: Stream,
    /// Length of the prefix that belongs to ancestors.
    pub at: u32,
    /// Segments before `at`.
    pub depth_at_fork: u32,
    /// Inclusion weight: 1 unless a policy over- or under-sampled the path.
    pub weight: f32,
    /// Reward of the trajectory; NaN until set.
    pub reward: f32,
    parent: u32,
    pub(super) span: Span,
    pub(super) marks: List,
    pub(super) num_marks: u32,
    pub(super) runs: List,
    pub(super) forks: Forks,
    /// Why the path was started.
    pub origin: ForkOrigin,
    /// Why it ended, once it has.
    pub finish: Option<FinishReason>,
}

const _: () = assert!(size_of::<Path>() <= 64, "a path is one cache line");

/// A path's place in the lists of forks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forks {
    /// Last of the paths that leave this one. Those that leave it at its present end come first.
    last: u32,
    /// The next path that leaves the same parent; behind the last one comes the first.
    next: u32,
}

impl Path {
    /// A path without tokens; it stands for one that does not exist.
    pub(super) const EMPTY: Self = Self {
        stream: Stream(0),
        at: 0,
        depth_at_fork: 0,
        weight: 1.0,
        reward: f32::NAN,
        parent: NONE,
        span: Span::EMPTY,
        marks: List::EMPTY,
        num_marks: 0,
        runs: List::EMPTY,
        forks: Forks { last: NONE, next: NONE },
        origin: ForkOrigin::Root,
        finish: None,
    };

    /// The first path of a tree.
    pub(super) fn root(stream: Stream) -> Self {
        Self { stream, ..Self::EMPTY }
    }

    /// A path that leaves `parent` at `at`.
    pub(super) fn fork(
        parent: PathId,
        at: u32,
        depth_at_fork: u32,
        stream: Stream,
        origin: ForkOrigin,
    ) -> Self {
        Self { parent: parent.0, at, depth_at_fork, stream, origin, ..Self::EMPTY }
    }

    /// The path that owns token `at - 1`; none for path 0.
    #[inline]
    pub fn parent(&self) -> Option<PathId> {
        some(self.parent)
    }

    /// Tokens of the path's own.
    #[inline]
    pub fn own_len(&self) -> u32 {
        self.span.len
    }

    /// Tokens of the whole sequence, prompt included.
    #[inline]
    pub fn len(&self) -> u32 {
        self.at + self.span.len
    }

    /// Whether the sequence has no token; never true for a path of a forest.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Segments from the root to the path's end.
    #[inline]
    pub fn depth(&self) -> u32 {
        self.depth_at_fork + self.num_marks
    }
}

fn some(path: u32) -> Option<PathId> {
    (path != NONE).then_some(PathId(path))
}

/// The first of the paths that leave `path`; those that leave it at its present end come first.
pub(super) fn first_fork(paths: &[Path], path: PathId) -> Option<PathId> {
    let last = some(paths[path.index()].forks.last)?;
    some(paths[last.index()].forks.next)
}

/// The path behind `fork` among those that leave the same parent.
pub(super) fn next_fork(paths: &[Path], fork: PathId) -> Option<PathId> {
    let parent = paths[fork.index()].parent()?;
    let is_last = paths[parent.index()].forks.last == fork.0;
    some(paths[fork.index()].forks.next).filter(|_| !is_last)
}

/// Enters a new path among those that leave its parent. O(1).
pub(super) fn link_fork(paths: &mut [Path], fork: PathId) {
    let Some(parent) = paths[fork.index()].parent() else { return };
    let (at, end, last) = {
        let owner = &paths[parent.index()];
        (paths[fork.index()].at, owner.len(), owner.forks.last)
    };
    let next = match some(last) {
        Some(last) => std::mem::replace(&mut paths[last.index()].forks.next, fork.0),
        None => fork.0,
    };
    paths[fork.index()].forks.next = next;
    if last == NONE || at < end {
        paths[parent.index()].forks.last = fork.0;
    }
}

/// The path behind `path` in a walk over `top` and all paths below it, parents first.
pub(super) fn next_below(paths: &[Path], top: PathId, path: PathId) -> Option<PathId> {
    let mut current = path;
    let mut next = first_fork(paths, path);
    while next.is_none() && current != top {
        next = next_fork(paths, current);
        current = paths[current.index()].parent()?;
    }
    next
}
