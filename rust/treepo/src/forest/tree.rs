//! One tree: its paths and the stores that hold their tokens, marks and runs.

use std::collections::TryReserveError;

use super::marks::Marks;
use super::path::{self, Dependence, Path, SampledToken, TokenKind};
use super::runs::{Run, Runs};
use super::store::{CHUNK, Cursor, Store};
use crate::error::{Error, Result};
use crate::ids::PathId;
use crate::key::Stream;

/// One prompt and all paths sampled for it.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The caller's key; it seeds the tree's random numbers.
    pub key: u64,
    /// Tokens of the prompt, at the front of path 0.
    pub prompt_len: u32,
    /// Whether seed, key, prompt, configuration and model decide the tree. One that the caller
    /// aborts depends on when.
    pub is_replayable: bool,
    /// What the tree's forks depended on.
    pub dependence: Dependence,
    pub(super) stream: Stream,
    pub(super) paths: Vec<Path>,
    pub(super) store: Store,
    pub(super) marks: Marks,
    pub(super) runs: Runs,
}

/// A token of a path's sequence, as [`Tree::rev_tokens`] reads it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PathToken {
    /// Absolute position in the sequence.
    pub position: u32,
    /// The token.
    pub id: u32,
    /// As [`SampledToken::logprob`]; NaN for a token that was not sampled.
    pub logprob: f32,
    /// As [`SampledToken::entropy`]; NaN for a token that was not sampled.
    pub entropy: f32,
    /// Whether the model sampled it: it is no token of the prompt and was not given.
    pub is_sampled: bool,
}

impl Tree {
    /// A tree without paths.
    pub(super) fn new(key: u64, stream: Stream, prompt_len: u32) -> Self {
        Self {
            key,
            prompt_len,
            is_replayable: true,
            dependence: Dependence::Prefix,
            stream,
            paths: Vec::new(),
            store: Store::default(),
            marks: Marks::default(),
            runs: Runs::default(),
        }
    }

    /// The tree's stream of random numbers, for decisions about the whole tree.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// The paths by id.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// One path.
    ///
    /// # Errors
    /// `InvalidInput` for a path that does not exist.
    pub fn path(&self, path: PathId) -> Result<&Path> {
        self.paths.get(path.index()).ok_or_else(|| {
            Error::InvalidInput(format!("path {path} of a tree of {} paths", self.paths.len()))
        })
    }

    /// One path that exists.
    #[inline]
    pub(crate) fn own(&self, path: PathId) -> &Path {
        &self.paths[path.index()]
    }

    /// The path's last token, if it is its own. O(1).
    #[inline]
    pub(crate) fn newest_id(&self, path: PathId) -> Option<u32> {
        self.store.last_id(self.own(path).span)
    }

    /// The prompt's tokens.
    pub fn prompt(&self) -> &[u32] {
        self.store.front(self.prompt_len)
    }

    /// How many tokens from the front two paths have in common as shared tokens. O(ancestors).
    pub(crate) fn shared_len(&self, a: PathId, b: PathId) -> u32 {
        let (mut a, mut b) = (a, b);
        let mut shared = self.own(a).len().min(self.own(b).len());
        while a != b {
            let younger = if a > b { &mut a } else { &mut b }; // a parent is older than its child
            let own = self.own(*younger);
            shared = shared.min(own.at);
            *younger = own.parent().unwrap_or(PathId(0));
        }
        shared
    }

    /// One path, or one without tokens if it does not exist.
    fn own_or_empty(&self, path: PathId) -> &Path {
        static EMPTY: Path = Path::EMPTY;
        self.paths.get(path.index()).unwrap_or(&EMPTY)
    }

    /// Bytes of the columns that hold the tokens, marks and runs, with the room that is not used
    /// yet. Long paths take at most 16 bytes a token: 12.5, and a quarter of that as room to grow.
    pub fn column_bytes(&self) -> usize {
        self.store.bytes() + self.marks.bytes() + self.runs.bytes()
    }

    /// Segment boundaries of a path where another path can start: the end of the prompt and each
    /// mark strictly before the path's end, ascending. O(marks on the path + ancestors * log marks).
    ///
    /// # Errors
    /// `InvalidInput` for a path that does not exist.
    pub fn boundaries(&self, path: PathId) -> Result<Vec<u32>> {
        self.path(path)?;
        let mut out = Vec::new();
        self.fill_boundaries(path, &mut out);
        Ok(out)
    }

    /// [`Tree::boundaries`] of a path that exists, in place of what `out` holds.
    pub(crate) fn fill_boundaries(&self, path: PathId, out: &mut Vec<u32>) {
        out.clear();
        let mut own = self.own(path);
        let mut limit = own.len().saturating_sub(1);
        loop {
            out.extend(self.marks.descending(own.marks, limit));
            limit = limit.min(own.at);
            match own.parent() {
                Some(parent) => own = self.own(parent),
                None => break,
            }
        }
        out.push(self.prompt_len);
        out.reverse();
    }

    /// The last of [`Tree::boundaries`] of a path that exists.
    pub(crate) fn last_boundary(&self, path: PathId) -> u32 {
        self.boundary_up_to(path, self.own(path).len().saturating_sub(1))
    }

    /// The last mark of a path's sequence at or before `limit`, or the end of the prompt.
    /// O(ancestors * log marks).
    pub(crate) fn boundary_up_to(&self, path: PathId, mut limit: u32) -> u32 {
        let mut own = self.own(path);
        loop {
            if let Some(boundary) = self.marks.descending(own.marks, limit).next() {
                return boundary;
            }
            limit = limit.min(own.at);
            match own.parent() {
                Some(parent) => own = self.own(parent),
                None => return self.prompt_len,
            }
        }
    }

    /// Copies tokens `start..end` of the path's sequence to `out`. O(ancestors behind `start`) and
    /// one step a 16 tokens from the nearer end of each owner; the last token costs O(1).
    ///
    /// # Errors
    /// `InvalidInput` for a path that does not exist, a range that is not in its sequence, or an
    /// `out` that has not `end - start` elements.
    pub fn copy_tokens<T: From<u32>>(
        &self,
        path: PathId,
        start: u32,
        end: u32,
        out: &mut [T],
    ) -> Result<()> {
        let len = self.path(path)?.len();
        if start > end || end > len || out.len() != (end - start) as usize {
            return Err(Error::InvalidInput(format!(
                "tokens {start}..{end} of path {path} with {len} tokens for {} elements",
                out.len()
            )));
        }
        self.fill_tokens(path, start, out);
        Ok(())
    }

    /// Copies the tokens from `start` on, as many as `out` has elements, of a path that has them.
    pub(crate) fn fill_tokens<T: From<u32>>(&self, path: PathId, start: u32, out: &mut [T]) {
        let mut left = out;
        let mut own = self.own(path);
        loop {
            // tokens that belong to ancestors
            let front = (own.at.saturating_sub(start) as usize).min(left.len());
            let (rest, tail) = left.split_at_mut(front);
            self.store.copy_ids(own.span, start.saturating_sub(own.at), tail);
            left = rest;
            match own.parent() {
                Some(parent) if !left.is_empty() => own = self.own(parent),
                _ => return,
            }
        }
    }

    /// The path's whole token sequence, prompt included.
    ///
    /// # Errors
    /// `InvalidInput` for a path that does not exist.
    pub fn tokens(&self, path: PathId) -> Result<Vec<u32>> {
        let mut out = vec![0u32; self.path(path)?.len() as usize];
        self.fill_tokens(path, 0, &mut out);
        Ok(out)
    }

    /// Ids of the path's own tokens; none for a path that does not exist.
    pub fn own_ids(&self, path: PathId) -> impl Iterator<Item = u32> + Clone + '_ {
        self.store.ids(self.own_or_empty(path).span)
    }

    /// Log-probabilities of the path's own tokens, NaN for tokens that were not sampled; none for a
    /// path that does not exist.
    pub fn own_logprobs(&self, path: PathId) -> impl Iterator<Item = f32> + Clone + '_ {
        self.store.logprobs(self.own_or_empty(path).span)
    }

    /// Entropies of the path's own tokens, NaN for tokens that were not sampled; none for a path
    /// that does not exist.
    pub fn own_entropies(&self, path: PathId) -> impl Iterator<Item = f32> + Clone + '_ {
        self.store.entropies(self.own_or_empty(path).span)
    }

    /// The path's runs with the number of their tokens.
    fn own_runs(&self, path: PathId) -> impl Iterator<Item = (usize, Run)> + Clone + '_ {
        let own = self.own_or_empty(path);
        self.runs.pieces(own.runs, own.span.len)
    }

    /// Kinds of the path's own tokens; none for a path that does not exist.
    pub fn own_kinds(&self, path: PathId) -> impl Iterator<Item = TokenKind> + Clone + '_ {
        let prompt_len = if path.0 == 0 { self.prompt_len as usize } else { 0 };
        let kind = |run: Run| if run.is_given { TokenKind::Given } else { TokenKind::Sampled };
        let runs = self.own_runs(path);
        let kinds = runs.flat_map(move |(count, run)| std::iter::repeat_n(kind(run), count));
        let is_prompt = move |i| i < prompt_len;
        kinds.enumerate().map(move |(i, kind)| if is_prompt(i) { TokenKind::Prompt } else { kind })
    }

    /// Policy versions that sampled the path's own tokens; one that was not sampled has that of the
    /// path's own token before it, or 0. None for a path that does not exist.
    pub fn own_versions(&self, path: PathId) -> impl Iterator<Item = u32> + Clone + '_ {
        self.own_runs(path).flat_map(|(count, run)| std::iter::repeat_n(run.version, count))
    }

    /// Absolute positions where the path's own segments end, ascending; none for a path that does
    /// not exist.
    pub fn own_marks(&self, path: PathId) -> impl Iterator<Item = u32> + Clone + '_ {
        self.marks.ascending(self.own_or_empty(path).marks)
    }

    /// Position of the path's last own mark.
    pub fn last_mark(&self, path: PathId) -> Option<u32> {
        self.marks.last(self.own_or_empty(path).marks)
    }

    /// The tokens of the path's whole sequence, newest first, prompt included; none for a path that
    /// does not exist. O(1) a token; passing on to an ancestor takes one step a 16 tokens from the
    /// nearer end of what that owns.
    pub fn rev_tokens(&self, path: PathId) -> impl Iterator<Item = PathToken> + Clone + '_ {
        let own = self.own_or_empty(path);
        let mut tokens = RevTokens { tree: self, own, end: own.len(), place: None, run: None };
        tokens.enter(own);
        tokens
    }

    /// The path that owns token `at - 1` of the path's sequence. O(ancestors), O(1) at its end.
    pub(super) fn owner(&self, path: PathId, at: u32) -> PathId {
        let mut owner = path;
        while let Some(parent) = self.own(owner).parent().filter(|_| at <= self.own(owner).at) {
            owner = parent;
        }
        owner
    }

    /// Segments before position `at` on the path that owns token `at - 1`. O(log marks).
    pub(super) fn depth_at(&self, owner: PathId, at: u32) -> u32 {
        let own = self.own(owner);
        own.depth_at_fork + self.marks.count_up_to(own.marks, at)
    }

    pub(super) fn push_path(&mut self, path: Path) -> PathId {
        let id = PathId(self.paths.len() as u32);
        self.paths.push(path);
        path::link_fork(&mut self.paths, id);
        id
    }

    /// Appends a token that was not sampled. Those of the prompt are told by their place.
    pub(super) fn push_unsampled(&mut self, path: PathId, id: u32, is_given: bool) {
        let token = SampledToken { id, logprob: f32::NAN, entropy: f32::NAN };
        let version = self.runs.version(self.own(path).runs);
        self.push(path, token, version, is_given);
    }

    /// Appends a token to a path. O(1).
    #[inline]
    pub(super) fn push(&mut self, path: PathId, token: SampledToken, version: u32, is_given: bool) {
        let own = &mut self.paths[path.index()];
        self.runs.start(&mut own.runs, Run { start: own.span.len, version, is_given });
        self.store.push(&mut own.span, token);
    }

    /// Marks `position`, which lies behind all marks of the path: its end, or any place while no
    /// path has left it. O(1), and one step for each path that left at its end and all below it.
    pub(super) fn push_mark(&mut self, path: PathId, position: u32) {
        let own = &mut self.paths[path.index()];
        self.marks.push(&mut own.marks, position);
        own.num_marks += 1;
        self.deepen_forks(path, position);
    }

    /// Brings the depths of the paths up to date that left `path` at its new mark, and of those
    /// below them.
    fn deepen_forks(&mut self, path: PathId, at: u32) {
        let mut fork = path::first_fork(&self.paths, path);
        while let Some(top) = fork.filter(|&top| self.own(top).at == at) {
            let mut below = Some(top);
            while let Some(path) = below {
                self.paths[path.index()].depth_at_fork += 1;
                below = path::next_below(&self.paths, top, path);
            }
            fork = path::next_fork(&self.paths, top);
        }
    }

    /// Makes room for further paths, tokens and marks.
    pub(super) fn reserve(
        &mut self,
        num_paths: usize,
        num_tokens: usize,
        num_marks: usize,
    ) -> std::result::Result<(), TryReserveError> {
        let all_paths = self.paths.len().saturating_add(num_paths);
        self.paths.try_reserve_exact(num_paths)?;
        // each path that gets tokens may leave its last chunk open
        self.store.reserve((num_tokens / CHUNK).saturating_add(all_paths.min(num_tokens)))?;
        self.marks.reserve(num_marks)?;
        self.runs.reserve(all_paths.min(num_tokens))
    }
}

/// Reads a sequence from its end.
#[derive(Debug, Clone)]
struct RevTokens<'a> {
    tree: &'a Tree,
    /// Owner of the next token, or a path whose own tokens have been read.
    own: &'a Path,
    /// Position behind the next token.
    end: u32,
    /// The next token's place.
    place: Option<Cursor>,
    /// Run of the last token read, or a later one of the same path.
    run: Option<usize>,
}

impl<'a> RevTokens<'a> {
    /// Goes on with the own tokens of `own` before `end`.
    fn enter(&mut self, own: &'a Path) {
        self.own = own;
        self.run = own.runs.last();
        let i = self.end.checked_sub(own.at + 1);
        self.place = i.and_then(|i| self.tree.store.cursor(own.span, i));
    }
}

impl Iterator for RevTokens<'_> {
    type Item = PathToken;

    fn next(&mut self) -> Option<PathToken> {
        while self.end <= self.own.at {
            self.enter(self.tree.own(self.own.parent()?));
        }
        let place = self.place?;
        let SampledToken { id, logprob, entropy } = self.tree.store.token(place);
        self.place = self.tree.store.before(place);
        self.end -= 1;
        let position = self.end;
        self.run = self.tree.runs.find(self.run, position - self.own.at);
        let is_prompt = position < self.tree.prompt_len;
        let is_sampled = !is_prompt && !self.tree.runs.is_given(self.run);
        Some(PathToken { position, id, logprob, entropy, is_sampled })
    }
}
