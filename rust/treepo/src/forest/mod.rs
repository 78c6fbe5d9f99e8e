//! The forest: trees of token paths, and one primitive, [`Forest::fork`].
//!
//! A path's token sequence is its parent's first `at` tokens followed by its own. Where a tree
//! branches in k, the first child simply continues its parent's path and each further child is
//! one fork, so a tree has as many paths as leaves. Nothing is ever split or renamed. Segments are
//! marks along a path; nodes are derived when they are needed ([`Forest::nodes`]).
//!
//! A token belongs to exactly one path (law T3) because a fork copies no token. A path is plain
//! data; the tokens, marks and runs of all paths of a tree lie in few vectors of the tree, so that
//! growing many paths at once allocates little, and nothing after [`Forest::reserve_tree`].

mod check;
mod columns;
mod links;
mod marks;
mod nodes;
mod path;
mod runs;
mod store;
mod tree;

pub use columns::Columns;
pub use nodes::Nodes;
pub use path::{Dependence, FinishReason, ForkOrigin, Path, SampledToken, TokenKind};
pub use tree::{PathToken, Tree};

pub(crate) use path::check_number;
use path::{MAX_LEN, MAX_PATHS};

use crate::error::{Error, Result};
use crate::ids::{PathId, TreeId};
use crate::key::Stream;

/// Trees of token paths, from the sampler to the optimiser.
#[derive(Debug, Clone, Default)]
pub struct Forest {
    trees: Vec<Tree>,
}

impl Forest {
    /// An empty forest.
    pub fn new() -> Self {
        Self::default()
    }

    /// The trees by id.
    pub fn trees(&self) -> &[Tree] {
        &self.trees
    }

    /// Number of paths of all trees. Every path is a leaf.
    pub fn num_paths(&self) -> usize {
        self.trees.iter().map(|tree| tree.paths.len()).sum()
    }

    /// Number of unique tokens, prompts included.
    pub fn num_tokens(&self) -> usize {
        self.trees.iter().flat_map(|tree| &tree.paths).map(|path| path.own_len() as usize).sum()
    }

    /// One tree.
    ///
    /// # Errors
    /// `InvalidInput` for a tree that does not exist.
    pub fn tree(&self, tree: TreeId) -> Result<&Tree> {
        self.trees.get(tree.index()).ok_or_else(|| unknown_tree(tree, self.trees.len()))
    }

    fn tree_mut(&mut self, tree: TreeId) -> Result<&mut Tree> {
        let num_trees = self.trees.len();
        self.trees.get_mut(tree.index()).ok_or_else(|| unknown_tree(tree, num_trees))
    }

    /// One path.
    ///
    /// # Errors
    /// `InvalidInput` for a tree or path that does not exist.
    pub fn path(&self, tree: TreeId, path: PathId) -> Result<&Path> {
        let paths = &self.tree(tree)?.paths;
        paths.get(path.index()).ok_or_else(|| {
            Error::InvalidInput(format!("path {path} of tree {tree} with {} paths", paths.len()))
        })
    }

    /// Adds a tree; its path 0 holds the prompt.
    ///
    /// # Errors
    /// `InvalidInput` if the prompt is empty or has more than `i32::MAX` tokens.
    pub fn add_tree(&mut self, seed: u64, key: u64, prompt: &[u32]) -> Result<TreeId> {
        if prompt.is_empty() {
            return Err(Error::InvalidInput("a prompt needs at least one token".into()));
        }
        check_room(PathId(0), 0, prompt.len())?;
        prompt.iter().try_for_each(|&id| check_number("token id", id))?;
        let stream = Stream::of_tree(seed, key);
        let mut tree = Tree::new(key, stream, prompt.len() as u32);
        let root = tree.push_path(Path::root(stream.of_path(0)));
        for &id in prompt {
            tree.push_unsampled(root, id, false);
        }
        self.trees.push(tree);
        Ok(TreeId(self.trees.len() as u32 - 1))
    }

    /// Makes room in a tree for this many further paths, tokens and marks, so that forks, sampled
    /// tokens and marks allocate nothing until then. Of changes of the policy version and of given
    /// tokens there is room for one a path.
    ///
    /// # Errors
    /// `InvalidInput` for a tree that does not exist, or if there is not that much memory.
    pub fn reserve_tree(
        &mut self,
        tree: TreeId,
        num_paths: usize,
        num_tokens: usize,
        num_marks: usize,
    ) -> Result<()> {
        let reserved = self.tree_mut(tree)?.reserve(num_paths, num_tokens, num_marks);
        reserved.map_err(|error| {
            Error::InvalidInput(format!(
                "room for {num_paths} paths, {num_tokens} tokens and {num_marks} marks: {error}"
            ))
        })
    }

    /// Starts a new path that shares the first `at` tokens of `path`; no token moves. O(1) at the
    /// path's end, else O(ancestors + log marks).
    ///
    /// The new path's parent is the path that owns token `at - 1`.
    ///
    /// # Errors
    /// `InvalidInput` unless `prompt_len <= at <= len(path)`, or for the `i32::MAX`th path.
    pub fn fork(
        &mut self,
        tree: TreeId,
        path: PathId,
        at: u32,
        origin: ForkOrigin,
    ) -> Result<PathId> {
        let (len, prompt_len) = (self.path(tree, path)?.len(), self.tree(tree)?.prompt_len);
        if at < prompt_len || at > len {
            return Err(Error::InvalidInput(format!(
                "fork of path {path} at {at}: the position lies outside {prompt_len}..={len}"
            )));
        }
        let tree = self.tree_mut(tree)?;
        let ordinal = tree.paths.len();
        if ordinal >= MAX_PATHS {
            return Err(Error::InvalidInput(format!("a tree has at most {MAX_PATHS} paths")));
        }
        let owner = tree.owner(path, at);
        let depth = tree.depth_at(owner, at);
        let stream = tree.stream.of_path(ordinal as u32);
        Ok(tree.push_path(Path::fork(owner, at, depth, stream, origin)))
    }

    /// Appends one sampled token to a live path. O(1).
    ///
    /// # Errors
    /// `InvalidInput` for a finished path or one of `i32::MAX` tokens, `NotFinite` for a
    /// log-probability or entropy that is not.
    pub fn push_token(
        &mut self,
        tree: TreeId,
        path: PathId,
        token: SampledToken,
        version: u32,
    ) -> Result<()> {
        let len = self.live(tree, path)?.len();
        check_room(path, len, 1)?;
        token.check(tree, path)?;
        check_number("version", version)?;
        self.tree_mut(tree)?.push(path, token, version, false);
        Ok(())
    }

    /// Appends tokens that the model did not sample: the output of a tool, or the user's text.
    ///
    /// # Errors
    /// `InvalidInput` for a finished path or one that would have more than `i32::MAX` tokens.
    pub fn push_given(&mut self, tree: TreeId, path: PathId, ids: &[u32]) -> Result<()> {
        let len = self.live(tree, path)?.len();
        check_room(path, len, ids.len())?;
        ids.iter().try_for_each(|&id| check_number("token id", id))?;
        let tree = self.tree_mut(tree)?;
        for &id in ids {
            tree.push_unsampled(path, id, true);
        }
        Ok(())
    }

    /// Ends a segment at the path's end. A segment without tokens has none: neither a second mark
    /// at the same place nor one at the end of the prompt changes anything. O(1), and one step for
    /// each path that has left there already and all below it.
    ///
    /// # Errors
    /// `InvalidInput` for a finished path.
    pub fn mark(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        let own = self.live(tree, path)?;
        let (len, at) = (own.len(), own.at);
        let tree = self.tree_mut(tree)?;
        if len > at.max(tree.prompt_len) && tree.last_mark(path) != Some(len) {
            tree.push_mark(path, len);
        }
        Ok(())
    }

    /// Gives the path its finish reason; a path has one (law T5).
    ///
    /// # Errors
    /// `InvalidInput` for a path that has one.
    pub fn finish(&mut self, tree: TreeId, path: PathId, reason: FinishReason) -> Result<()> {
        self.live(tree, path)?;
        self.tree_mut(tree)?.paths[path.index()].finish = Some(reason);
        Ok(())
    }

    /// Sets the inclusion weight of a path, finished or not.
    ///
    /// # Errors
    /// `InvalidInput` for a path that does not exist or a weight that is not finite or negative.
    pub fn set_weight(&mut self, tree: TreeId, path: PathId, weight: f32) -> Result<()> {
        self.path(tree, path)?;
        if !weight.is_finite() || weight < 0.0 {
            let message = format!("weight {weight} of path {path}: it is finite and at least 0");
            return Err(Error::InvalidInput(message));
        }
        self.tree_mut(tree)?.paths[path.index()].weight = weight;
        Ok(())
    }

    /// Sets the reward of every path, tree by tree.
    ///
    /// # Errors
    /// `InvalidInput` unless there is one reward a path.
    pub fn set_rewards(&mut self, rewards: &[f32]) -> Result<()> {
        if rewards.len() != self.num_paths() {
            let (given, needed) = (rewards.len(), self.num_paths());
            return Err(Error::InvalidInput(format!("{given} rewards for {needed} paths")));
        }
        let paths = self.trees.iter_mut().flat_map(|tree| &mut tree.paths);
        for (path, &reward) in paths.zip(rewards) {
            path.reward = reward;
        }
        Ok(())
    }

    /// A copy of these trees, in the given order.
    ///
    /// # Errors
    /// `InvalidInput` for a tree that does not exist.
    pub fn select(&self, trees: &[TreeId]) -> Result<Self> {
        let trees = trees.iter().map(|&tree| self.tree(tree).cloned()).collect::<Result<_>>()?;
        Ok(Self { trees })
    }

    /// A copy of all trees of all forests, in order.
    #[must_use]
    pub fn concatenate<'a>(forests: impl Iterator<Item = &'a Self>) -> Self {
        Self { trees: forests.flat_map(|forest| forest.trees.iter().cloned()).collect() }
    }

    /// Records that something else than the tree's own history has had a say in it.
    ///
    /// # Errors
    /// `InvalidInput` for a tree that does not exist.
    pub fn set_not_replayable(&mut self, tree: TreeId) -> Result<()> {
        self.tree_mut(tree)?.is_replayable = false;
        Ok(())
    }

    /// Records what the tree's forks depend on.
    ///
    /// # Errors
    /// `InvalidInput` for a tree that does not exist.
    pub fn set_dependence(&mut self, tree: TreeId, dependence: Dependence) -> Result<()> {
        self.tree_mut(tree)?.dependence = dependence;
        Ok(())
    }

    fn live(&self, tree: TreeId, path: PathId) -> Result<&Path> {
        let own = self.path(tree, path)?;
        match own.finish {
            None => Ok(own),
            Some(reason) => Err(Error::InvalidInput(format!(
                "path {path} of tree {tree} is finished ({reason:?})"
            ))),
        }
    }
}

fn unknown_tree(tree: TreeId, num_trees: usize) -> Error {
    Error::InvalidInput(format!("tree {tree} of a forest of {num_trees} trees"))
}

fn check_room(path: PathId, len: u32, num_tokens: usize) -> Result<()> {
    if num_tokens > (MAX_LEN - len) as usize {
        let message = format!("path {path} has {len} tokens; {num_tokens} more exceed {MAX_LEN}");
        return Err(Error::InvalidInput(message));
    }
    Ok(())
}
