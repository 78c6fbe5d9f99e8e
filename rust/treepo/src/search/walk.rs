//! A path's completion from its end backwards, across its ancestors. Every rule that looks at
//! tokens reads them here.

use crate::forest::{Path, TokenKind, Tree};
use crate::ids::PathId;

/// One token of a completion.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    owner: &'a Path,
    index: usize,
    /// Absolute position.
    pub(super) pos: u32,
}

impl Token<'_> {
    pub(super) fn id(&self) -> u32 {
        self.owner.own_tokens()[self.index]
    }

    pub(super) fn is_sampled(&self) -> bool {
        self.owner.own_kinds()[self.index] == TokenKind::Sampled
    }

    pub(super) fn logprob(&self) -> f32 {
        self.owner.own_logprobs()[self.index]
    }

    pub(super) fn entropy(&self) -> f32 {
        self.owner.own_entropies()[self.index]
    }
}

/// The tokens of a completion, newest first. A step is O(1), and O(ancestors) over the whole walk
/// beyond that; nothing is allocated.
#[derive(Debug, Clone)]
pub(super) struct Backwards<'a> {
    tree: &'a Tree,
    owner: &'a Path,
    /// Position behind the next token.
    end: u32,
}

/// The completion of `path` before position `end`, newest token first.
pub(super) fn backwards(tree: &Tree, path: PathId, end: u32) -> Backwards<'_> {
    Backwards { tree, owner: tree.path(path), end }
}

impl<'a> Iterator for Backwards<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        if self.end <= self.tree.prompt_len {
            return None;
        }
        while self.end <= self.owner.at {
            self.owner = self.tree.path(self.owner.parent?);
        }
        self.end -= 1;
        let index = (self.end - self.owner.at) as usize;
        Some(Token { owner: self.owner, index, pos: self.end })
    }
}

/// Tokens of the completion of `path`.
pub(super) fn completion_len(tree: &Tree, path: PathId) -> u32 {
    tree.path(path).len().saturating_sub(tree.prompt_len)
}

/// Writes the segment boundaries of `path` where another path can start, ascending: the end of the
/// prompt and each mark strictly before the path's end. The boundary at index `i` has depth `i`.
/// O(marks on the path and ancestors).
pub(super) fn boundaries(tree: &Tree, path: PathId, out: &mut Vec<u32>) {
    out.clear();
    let mut own = tree.path(path);
    let mut limit = own.len().saturating_sub(1);
    loop {
        out.extend(own.own_marks().iter().rev().copied().filter(|&mark| mark <= limit));
        limit = limit.min(own.at);
        let Some(parent) = own.parent else { break };
        own = tree.path(parent);
    }
    out.push(tree.prompt_len);
    out.reverse();
    out.dedup();
}
