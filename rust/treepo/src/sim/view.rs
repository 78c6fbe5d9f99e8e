//! A finished tree with every path's whole sequence written out, read from the flat columns.

use crate::error::Result;
use crate::forest::{Columns, FinishReason, Forest, ForkOrigin, TokenKind};
use crate::ids::TreeId;

/// One token of a path's sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) id: u32,
    pub(super) kind: Option<TokenKind>,
    pub(super) logprob: f32,
    pub(super) entropy: f32,
    /// The path that the token belongs to.
    pub(super) owner: usize,
}

/// One path, its sequence from the prompt on.
#[derive(Debug, Clone)]
pub(super) struct PathView {
    pub(super) parent: Option<usize>,
    pub(super) at: u32,
    pub(super) stream: u64,
    pub(super) origin: Option<ForkOrigin>,
    pub(super) finish: Option<FinishReason>,
    pub(super) weight: f32,
    pub(super) tokens: Vec<Token>,
    /// The own marks.
    pub(super) own_marks: Vec<u32>,
    /// The segment ends of the whole sequence, ascending.
    pub(super) marks: Vec<u32>,
}

impl PathView {
    pub(super) fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// The ids of the first `len` tokens.
    pub(super) fn ids(&self, len: u32) -> Vec<u32> {
        self.tokens[..len as usize].iter().map(|token| token.id).collect()
    }

    /// Segments that have ended at `len` or before.
    pub(super) fn depth(&self, len: u32) -> u32 {
        self.marks.iter().filter(|&&mark| mark <= len).count() as u32
    }

    /// The path that owns the token before this position.
    pub(super) fn owner_before(&self, at: u32) -> usize {
        self.tokens[at as usize - 1].owner
    }
}

/// One tree.
#[derive(Debug, Clone)]
pub(super) struct TreeView {
    pub(super) key: u64,
    pub(super) prompt_len: u32,
    pub(super) paths: Vec<PathView>,
}

impl TreeView {
    /// All trees of a forest.
    pub(super) fn all(forest: &Forest) -> Result<Vec<Self>> {
        let trees = 0..forest.trees().len() as u32;
        trees.map(|tree| Ok(Self::new(&forest.select(&[TreeId(tree)])?.columns()))).collect()
    }

    fn new(columns: &Columns) -> Self {
        let prompt_len = columns.tree_prompt_len[0] as u32;
        let mut tree = Self { key: columns.tree_key[0], prompt_len, paths: Vec::new() };
        for p in 0..columns.path_tree.len() {
            let path = tree.path(columns, p);
            tree.paths.push(path);
        }
        tree
    }

    /// Path `p`, whose parent has been read.
    fn path(&self, columns: &Columns, p: usize) -> PathView {
        let at = columns.path_at[p] as u32;
        let parent = usize::try_from(columns.path_parent[p]).ok();
        let (mut tokens, mut marks) = (Vec::new(), Vec::new());
        if let Some(parent) = parent {
            tokens.extend_from_slice(&self.paths[parent].tokens[..at as usize]);
            marks.extend(self.paths[parent].marks.iter().filter(|&&mark| mark <= at));
        }
        for i in columns.token_start[p] as usize..columns.token_start[p + 1] as usize {
            tokens.push(Token {
                id: columns.token_id[i] as u32,
                kind: TokenKind::from_u8(columns.token_kind[i]),
                logprob: columns.token_logprob[i],
                entropy: columns.token_entropy[i],
                owner: p,
            });
        }
        let own = columns.mark_path.iter().zip(&columns.mark_pos);
        let own_marks: Vec<u32> =
            own.filter(|(q, _)| **q as usize == p).map(|(_, &mark)| mark as u32).collect();
        marks.extend(&own_marks);
        PathView {
            parent,
            at,
            stream: columns.path_stream[p],
            origin: ForkOrigin::from_u8(columns.path_origin[p]),
            finish: FinishReason::from_u8(columns.path_finish[p]),
            weight: columns.path_weight[p],
            tokens,
            own_marks,
            marks,
        }
    }
}
