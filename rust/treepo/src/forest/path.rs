//! One path: its own tokens, its marks, and how it began and ended.

use crate::error::{Error, Result, law};
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
    /// Whether such a leaf counts towards the tree's width (law T2).
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
    /// Returns `NotFinite` if a number is NaN or infinite.
    pub fn check(&self, tree: TreeId, path: PathId) -> Result<()> {
        for (name, value) in [("log-probability", self.logprob), ("entropy", self.entropy)] {
            if !value.is_finite() {
                return Err(Error::NotFinite { tree, path, what: format!("{name} is {value}") });
            }
        }
        Ok(())
    }
}

/// One path of a tree.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    /// The path that owns token `at - 1`; none for path 0.
    pub parent: Option<PathId>,
    /// Length of the prefix that belongs to ancestors.
    pub at: u32,
    /// Segments before `at`.
    pub depth_at_fork: u32,
    /// The path's stream of random numbers.
    pub stream: Stream,
    /// Why the path was started.
    pub origin: ForkOrigin,
    /// Why it ended, once it has.
    pub finish: Option<FinishReason>,
    /// Inclusion weight: 1 unless a policy over- or under-sampled the path.
    pub weight: f32,
    /// Reward of the trajectory; NaN until set.
    pub reward: f32,
    pub(super) ids: Vec<u32>,
    pub(super) kinds: Vec<TokenKind>,
    pub(super) logprobs: Vec<f32>,
    pub(super) entropies: Vec<f32>,
    pub(super) versions: Vec<(u32, u32)>,
    pub(super) marks: Vec<u32>,
}

impl Path {
    pub(super) fn new(
        parent: Option<PathId>,
        at: u32,
        depth_at_fork: u32,
        stream: Stream,
        origin: ForkOrigin,
    ) -> Self {
        Self {
            parent,
            at,
            depth_at_fork,
            stream,
            origin,
            finish: None,
            weight: 1.0,
            reward: f32::NAN,
            ids: Vec::new(),
            kinds: Vec::new(),
            logprobs: Vec::new(),
            entropies: Vec::new(),
            versions: Vec::new(),
            marks: Vec::new(),
        }
    }

    /// The path that owns token `at - 1`; none for path 0.
    #[inline]
    pub fn parent(&self) -> Option<PathId> {
        self.parent
    }

    /// Tokens of the whole sequence, prompt included.
    #[inline]
    pub fn len(&self) -> u32 {
        self.at + self.ids.len() as u32
    }

    /// Whether the sequence has no token; never true for a path of a forest.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Segments from the root to the path's end.
    pub fn depth(&self) -> u32 {
        self.depth_at_fork + self.marks.len() as u32
    }

    /// The path's own tokens.
    pub fn own_tokens(&self) -> &[u32] {
        &self.ids
    }

    /// Kinds of the own tokens.
    pub fn own_kinds(&self) -> &[TokenKind] {
        &self.kinds
    }

    /// Log-probabilities of the own tokens; NaN for tokens that were not sampled.
    pub fn own_logprobs(&self) -> &[f32] {
        &self.logprobs
    }

    /// Entropies of the own tokens; NaN for tokens that were not sampled.
    pub fn own_entropies(&self) -> &[f32] {
        &self.entropies
    }

    /// Absolute positions where the path's own segments end, ascending.
    pub fn own_marks(&self) -> &[u32] {
        &self.marks
    }

    /// Policy versions as runs: (first own token, version). Version 0 needs no run.
    pub fn own_versions(&self) -> &[(u32, u32)] {
        &self.versions
    }

    pub(super) fn push_sampled(&mut self, token: SampledToken, version: u32) {
        self.start_version(self.ids.len() as u32, version);
        self.ids.push(token.id);
        self.kinds.push(TokenKind::Sampled);
        self.logprobs.push(token.logprob);
        self.entropies.push(token.entropy);
    }

    pub(super) fn extend_unsampled(&mut self, ids: &[u32], kind: TokenKind) {
        let len = self.ids.len() + ids.len();
        self.ids.extend_from_slice(ids);
        self.kinds.resize(len, kind);
        self.logprobs.resize(len, f32::NAN);
        self.entropies.resize(len, f32::NAN);
    }

    pub(super) fn start_version(&mut self, own_token: u32, version: u32) {
        let current = self.versions.last().map_or(0, |&(_, version)| version);
        if current != version {
            self.versions.push((own_token, version));
        }
    }

    pub(super) fn check_columns(&self, place: &dyn Fn() -> String) -> Result<()> {
        let n = self.ids.len();
        let lengths = [self.kinds.len(), self.logprobs.len(), self.entropies.len()];
        law(lengths == [n; 3], "T3", || format!("{}: columns {lengths:?} of {n}", place()))?;
        let ascending = self.marks.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = self.marks.iter().all(|&mark| self.at < mark && mark <= self.len());
        law(ascending && inside, "T3", || format!("{}: marks {:?}", place(), self.marks))
    }
}
