//! The forest as flat columns, tree-major, and back.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Dependence, FinishReason, Forest, ForkOrigin, Path, SampledToken, TokenKind, Tree};
use crate::error::{Error, Result};
use crate::ids::PathId;
use crate::key::Stream;

/// All columns of a forest. Paths are numbered through all trees; tree `t` owns the paths
/// `path_start[t]..path_start[t + 1]`, path `p` the tokens `token_start[p]..token_start[p + 1]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are those of Tree and Path")]
pub struct Columns {
    pub tree_key: Vec<u64>,
    pub tree_stream: Vec<u64>,
    pub tree_prompt_len: Vec<i32>,
    /// 1 for a replayable tree, else 0.
    pub tree_replayable: Vec<u8>,
    /// [`Dependence`] as a number.
    pub tree_dependence: Vec<u8>,
    pub path_start: Vec<i32>,
    pub path_tree: Vec<i32>,
    /// Number of the parent path, -1 without one.
    pub path_parent: Vec<i32>,
    pub path_at: Vec<i32>,
    pub token_start: Vec<i64>,
    pub path_length: Vec<i32>,
    pub path_stream: Vec<u64>,
    /// [`FinishReason`] as a number, 0 for none.
    pub path_finish: Vec<u8>,
    pub path_origin: Vec<u8>,
    pub path_weight: Vec<f32>,
    pub path_reward: Vec<f32>,
    pub token_id: Vec<i32>,
    pub token_kind: Vec<u8>,
    pub token_logprob: Vec<f32>,
    pub token_entropy: Vec<f32>,
    pub token_version: Vec<i32>,
    pub mark_path: Vec<i32>,
    pub mark_pos: Vec<i32>,
}

/// A value, or what is wrong with the path.
type Checked<T> = std::result::Result<T, &'static str>;

impl Forest {
    /// Copies the forest to flat columns in one pass, O(tokens).
    pub fn columns(&self) -> Columns {
        let mut columns =
            Columns { path_start: vec![0], token_start: vec![0], ..Columns::default() };
        for (t, tree) in self.trees.iter().enumerate() {
            let first = columns.path_tree.len() as i32;
            columns.tree_key.push(tree.key);
            columns.tree_stream.push(tree.stream.0);
            columns.tree_prompt_len.push(tree.prompt_len as i32);
            columns.tree_replayable.push(u8::from(tree.is_replayable));
            columns.tree_dependence.push(tree.dependence as u8);
            for (p, path) in (0..).map(PathId).zip(&tree.paths) {
                columns.push_path(t as i32, first, path);
                columns.push_tokens(tree, p, path);
            }
            columns.path_start.push(columns.path_tree.len() as i32);
        }
        columns
    }

    /// Rebuilds a forest from its columns and checks it. O(tokens + paths log marks).
    ///
    /// # Errors
    /// `InvalidInput` if the columns do not describe a forest.
    pub fn from_columns(columns: &Columns) -> Result<Self> {
        columns.check_shape()?;
        let mut forest = Self::new();
        for t in 0..columns.tree_key.len() {
            forest.trees.push(columns.tree(t)?);
        }
        forest.check().map_err(|error| Error::InvalidInput(format!("forest columns: {error}")))?;
        Ok(forest)
    }
}

impl Columns {
    fn push_path(&mut self, tree: i32, first: i32, path: &Path) {
        self.path_tree.push(tree);
        self.path_parent.push(path.parent().map_or(-1, |parent| first + parent.0 as i32));
        self.path_at.push(path.at as i32);
        self.path_length.push(path.len() as i32);
        self.path_stream.push(path.stream.0);
        self.path_finish.push(path.finish.map_or(0, |reason| reason as u8));
        self.path_origin.push(path.origin as u8);
        self.path_weight.push(path.weight);
        self.path_reward.push(path.reward);
    }

    fn push_tokens(&mut self, tree: &Tree, id: PathId, path: &Path) {
        let number = self.path_tree.len() as i32 - 1;
        self.token_id.extend(tree.own_ids(id).map(|id| id as i32));
        self.token_kind.extend(tree.own_kinds(id).map(|kind| kind as u8));
        self.token_logprob.extend(tree.own_logprobs(id));
        self.token_entropy.extend(tree.own_entropies(id));
        self.token_version.extend(tree.own_versions(id).map(|version| version as i32));
        self.token_start.push(self.token_id.len() as i64);
        self.mark_path.resize(self.mark_path.len() + path.num_marks as usize, number);
        self.mark_pos.extend(tree.own_marks(id).map(|mark| mark as i32));
    }

    fn tree(&self, t: usize) -> Result<Tree> {
        let dependence = Dependence::from_u8(self.tree_dependence[t]).ok_or_else(|| {
            let number = self.tree_dependence[t];
            Error::InvalidInput(format!("forest columns: tree {t}: dependence {number}"))
        })?;
        let (stream, prompt_len) = (Stream(self.tree_stream[t]), self.tree_prompt_len[t] as u32);
        let mut tree = Tree::new(self.tree_key[t], stream, prompt_len);
        tree.is_replayable = self.tree_replayable[t] != 0;
        tree.dependence = dependence;
        let first = self.path_start[t];
        for p in first..self.path_start[t + 1] {
            let added = self.add_path(&mut tree, t, p as usize, first);
            let describe = |what| Error::InvalidInput(format!("forest columns: path {p}: {what}"));
            added.map_err(describe)?;
        }
        Ok(tree)
    }

    /// Adds path `p` to its tree, whose first path is `first`; an error says what is wrong with it.
    fn add_path(&self, tree: &mut Tree, t: usize, p: usize, first: i32) -> Checked<()> {
        let path = self.path(tree, p, first)?;
        let tokens = self.token_start[p] as usize..self.token_start[p + 1] as usize;
        let len = i64::from(path.at) + tokens.len() as i64;
        if self.path_tree[p] as usize != t || i64::from(self.path_length[p]) != len {
            return Err("its tree or length");
        }
        let id = tree.push_path(path);
        self.add_tokens(tree, id, tokens)?;
        let marks = self.mark_path.partition_point(|&owner| owner < p as i32)
            ..self.mark_path.partition_point(|&owner| owner <= p as i32);
        self.mark_pos[marks].iter().for_each(|&position| tree.push_mark(id, position as u32));
        Ok(())
    }

    /// The path without its tokens and marks.
    fn path(&self, tree: &Tree, p: usize, first: i32) -> Checked<Path> {
        let (at, stream) = (self.path_at[p] as u32, Stream(self.path_stream[p]));
        let origin = ForkOrigin::from_u8(self.path_origin[p]).ok_or("origin")?;
        let mut path = match self.path_parent[p] {
            -1 if p == first as usize && at == 0 => Path::root(stream),
            parent if (first..p as i32).contains(&parent) => {
                let parent = PathId((parent - first) as u32);
                Path::fork(parent, at, tree.depth_at(parent, at), stream, origin)
            }
            _ => return Err("its parent is not an older path of its tree"),
        };
        path.origin = origin;
        path.finish = FinishReason::from_u8(self.path_finish[p]);
        if path.finish.is_none() && self.path_finish[p] != 0 {
            return Err("finish reason");
        }
        path.weight = self.path_weight[p];
        if !path.weight.is_finite() || path.weight < 0.0 {
            return Err("its weight is not finite or negative");
        }
        path.reward = self.path_reward[p];
        Ok(path)
    }

    fn add_tokens(&self, tree: &mut Tree, path: PathId, own: Range<usize>) -> Checked<()> {
        let num_prompt = if path.0 == 0 { tree.prompt_len as usize } else { 0 };
        for (i, n) in own.enumerate() {
            let kind = TokenKind::from_u8(self.token_kind[n]).ok_or("token kind")?;
            if (kind == TokenKind::Prompt) != (i < num_prompt) {
                return Err("the prompt is not the front of the tree's first path");
            }
            let (logprob, entropy) = (self.token_logprob[n], self.token_entropy[n]);
            let is_sampled = kind == TokenKind::Sampled;
            if logprob.is_finite() != is_sampled || entropy.is_finite() != is_sampled {
                return Err("a token has numbers and was not sampled, or the reverse");
            }
            if self.token_id[n] < 0 || self.token_version[n] < 0 {
                return Err("a token's id or version is negative");
            }
            let token = SampledToken { id: self.token_id[n] as u32, logprob, entropy };
            tree.push(path, token, self.token_version[n] as u32, kind == TokenKind::Given);
        }
        Ok(())
    }

    fn check_shape(&self) -> Result<()> {
        let (trees, paths) = (self.tree_key.len(), self.path_tree.len());
        let (tokens, marks) = (self.token_id.len(), self.mark_path.len());
        let lengths = [
            ("tree", trees, self.tree_lengths()),
            ("path", paths, self.path_lengths()),
            ("token", tokens, self.token_lengths()),
            ("mark", marks, vec![self.mark_pos.len()]),
        ];
        let uneven = lengths.iter().find(|(_, n, others)| others.iter().any(|other| other != n));
        if let Some((kind, n, others)) = uneven {
            let message = format!("forest columns: {kind} columns of {n} and {others:?} elements");
            return Err(Error::InvalidInput(message));
        }
        let paths_fit = offsets_fit(self.path_start.iter().map(|&x| i64::from(x)), trees, paths);
        let tokens_fit = offsets_fit(self.token_start.iter().copied(), paths, tokens);
        if !paths_fit || !tokens_fit || !self.mark_path.is_sorted() {
            return Err(Error::InvalidInput("forest columns: offsets do not ascend".into()));
        }
        self.check_signs()
    }

    fn check_signs(&self) -> Result<()> {
        let lengths = [&self.tree_prompt_len, &self.path_at, &self.mark_pos, &self.mark_path];
        let has_negative = lengths.iter().any(|column| column.iter().any(|&value| value < 0));
        let mark_fits = self.mark_path.last().is_none_or(|&p| (p as usize) < self.path_tree.len());
        if has_negative || !mark_fits {
            let message = "forest columns: a length is negative or a mark has no path";
            return Err(Error::InvalidInput(message.into()));
        }
        Ok(())
    }

    fn tree_lengths(&self) -> Vec<usize> {
        vec![
            self.tree_stream.len(),
            self.tree_prompt_len.len(),
            self.tree_replayable.len(),
            self.tree_dependence.len(),
        ]
    }

    fn path_lengths(&self) -> Vec<usize> {
        vec![
            self.path_parent.len(),
            self.path_at.len(),
            self.path_length.len(),
            self.path_stream.len(),
            self.path_finish.len(),
            self.path_origin.len(),
            self.path_weight.len(),
            self.path_reward.len(),
        ]
    }

    fn token_lengths(&self) -> Vec<usize> {
        vec![
            self.token_kind.len(),
            self.token_logprob.len(),
            self.token_entropy.len(),
            self.token_version.len(),
        ]
    }
}

/// Whether `offsets` has `rows + 1` elements that ascend from 0 to `end`.
fn offsets_fit(offsets: impl Iterator<Item = i64> + Clone, rows: usize, end: usize) -> bool {
    offsets.clone().count() == rows + 1
        && offsets.clone().next() == Some(0)
        && offsets.clone().last() == Some(end as i64)
        && offsets.is_sorted()
}
