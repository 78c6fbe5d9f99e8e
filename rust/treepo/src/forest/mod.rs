//! The forest: trees of token paths, and one primitive, [`Forest::fork`].
//!
//! A path's token sequence is its parent's first `at` tokens followed by its own. Where a tree
//! branches in k, the first child simply continues its parent's path and each further child is
//! one fork, so a tree has as many paths as leaves. Nothing is ever split or renamed. Segments are
//! marks along a path; nodes are derived when they are needed ([`Forest::nodes`]).
//!
//! A token belongs to exactly one path (law T3) because a fork copies no token.

mod columns;
mod nodes;
mod path;

pub use columns::Columns;
pub use nodes::Nodes;
pub use path::{FinishReason, ForkOrigin, Path, SampledToken, TokenKind};

use crate::error::{Error, Result, law};
use crate::ids::{PathId, TreeId};
use crate::key::Stream;

/// One prompt and all paths sampled for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tree {
    /// The caller's key; it seeds the tree's random numbers.
    pub key: u64,
    /// Tokens of the prompt, at the front of path 0.
    pub prompt_len: u32,
    /// Whether seed, key, prompt, configuration and model decide the tree. One that the caller
    /// aborts depends on when.
    pub is_replayable: bool,
    stream: Stream,
    paths: Vec<Path>,
}

impl Tree {
    /// The tree's stream of random numbers, for decisions about the whole tree.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// The paths by id.
    pub fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// One path.
    pub fn path(&self, path: PathId) -> &Path {
        &self.paths[path.index()]
    }

    pub(crate) fn own(&self, path: PathId) -> &Path {
        &self.paths[path.index()]
    }

    /// The prompt's tokens.
    pub fn prompt(&self) -> &[u32] {
        &self.paths[0].ids[..self.prompt_len as usize]
    }

    /// How many tokens from the front two paths have in common as shared tokens. O(ancestors).
    pub(crate) fn shared_len(&self, a: PathId, b: PathId) -> u32 {
        let (mut a, mut b) = (a, b);
        let mut shared = self.own(a).len().min(self.own(b).len());
        while a != b {
            let younger = if a > b { &mut a } else { &mut b }; // a parent is older than its child
            let own = self.own(*younger);
            shared = shared.min(own.at);
            *younger = own.parent.unwrap_or(PathId(0));
        }
        shared
    }

    /// Segment boundaries of a path where another path can start: the end of the prompt and each
    /// mark strictly before the path's end, ascending. O(marks on the path).
    pub fn boundaries(&self, path: PathId) -> Vec<u32> {
        let mut marks = Vec::new();
        let mut limit = self.path(path).len() - 1;
        let mut current = Some(path);
        while let Some(id) = current {
            let own = self.path(id);
            marks.extend(own.marks.iter().rev().copied().filter(|&mark| mark <= limit));
            limit = limit.min(own.at);
            current = own.parent;
        }
        marks.push(self.prompt_len);
        marks.reverse();
        marks.dedup();
        marks
    }

    /// Calls `visit` with each piece of the path's sequence within `start..end`, last piece first:
    /// the owning path and the range of its own tokens. O(ancestors).
    fn pieces(&self, path: PathId, start: u32, end: u32, mut visit: impl FnMut(&Path, u32, u32)) {
        let mut end = end;
        let mut current = Some(path);
        while let Some(id) = current {
            let own = self.path(id);
            let from = start.max(own.at);
            if from < end {
                visit(own, from, end);
            }
            end = end.min(own.at);
            current = if end > start { own.parent } else { None };
        }
    }

    /// Copies tokens `start..end` of the path's sequence to `out`, which has `end - start` elements.
    pub fn copy_tokens<T: From<u32>>(&self, path: PathId, start: u32, end: u32, out: &mut [T]) {
        self.pieces(path, start, end, |own, from, to| {
            let ids = &own.ids[(from - own.at) as usize..(to - own.at) as usize];
            let target = &mut out[(from - start) as usize..(to - start) as usize];
            for (slot, &id) in target.iter_mut().zip(ids) {
                *slot = T::from(id);
            }
        });
    }

    /// The path's whole token sequence, prompt included.
    pub fn tokens(&self, path: PathId) -> Vec<u32> {
        let mut out = vec![0u32; self.path(path).len() as usize];
        self.copy_tokens(path, 0, out.len() as u32, &mut out);
        out
    }

    /// Whether the prompt is the front of path 0 and nothing else.
    fn has_prompt(&self) -> bool {
        let Some((root, others)) = self.paths.split_first() else { return false };
        let is_prompt = |kind: &TokenKind| *kind == TokenKind::Prompt;
        let num_prompt = root.kinds.iter().take_while(|kind| is_prompt(kind)).count();
        let mut rest = root.kinds[num_prompt..].iter().chain(others.iter().flat_map(|p| &p.kinds));
        let is_marked = root.marks.first().is_some_and(|&mark| mark <= self.prompt_len);
        let is_front = num_prompt == self.prompt_len as usize && num_prompt > 0 && root.at == 0;
        is_front && !is_marked && !rest.any(is_prompt)
    }

    /// Brings the depths of younger paths up to date if one of them has left `path` at its new
    /// mark `at` already.
    fn deepen_forks(&mut self, path: PathId, at: u32) {
        let younger = path.index() + 1..self.paths.len();
        let leaves_here = |own: &Path| own.parent == Some(path) && own.at == at;
        if !self.paths[younger.clone()].iter().any(leaves_here) {
            return;
        }
        for p in younger {
            if let Some(parent) = self.paths[p].parent {
                self.paths[p].depth_at_fork = self.depth_at(parent, self.paths[p].at);
            }
        }
    }

    fn depth_at(&self, path: PathId, at: u32) -> u32 {
        let mut path = path;
        loop {
            let own = self.path(path);
            match own.parent {
                Some(parent) if at <= own.at => path = parent,
                _ => {
                    let marks = own.marks.partition_point(|&mark| mark <= at);
                    return own.depth_at_fork + marks as u32;
                }
            }
        }
    }
}

/// Trees of token paths, from the sampler to the optimiser.
#[derive(Debug, Clone, Default, PartialEq)]
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
        self.trees.iter().flat_map(|tree| &tree.paths).map(|path| path.ids.len()).sum()
    }

    /// One tree.
    pub fn tree(&self, tree: TreeId) -> Result<&Tree> {
        self.trees.get(tree.index()).ok_or_else(|| {
            Error::InvalidInput(format!("tree {tree} of a forest of {} trees", self.trees.len()))
        })
    }

    fn tree_mut(&mut self, tree: TreeId) -> &mut Tree {
        &mut self.trees[tree.index()]
    }

    /// Checked access to a path.
    pub fn path(&self, tree: TreeId, path: PathId) -> Result<&Path> {
        let paths = &self.tree(tree)?.paths;
        paths.get(path.index()).ok_or_else(|| {
            Error::InvalidInput(format!("path {path} of tree {tree} with {} paths", paths.len()))
        })
    }

    /// Adds a tree; its path 0 holds the prompt.
    ///
    /// # Errors
    /// `InvalidInput` if the prompt is empty.
    pub fn add_tree(&mut self, seed: u64, key: u64, prompt: &[u32]) -> Result<TreeId> {
        if prompt.is_empty() {
            return Err(Error::InvalidInput("a prompt needs at least one token".into()));
        }
        let stream = Stream::of_tree(seed, key);
        let mut root = Path::new(None, 0, 0, stream.of_path(0), ForkOrigin::Root);
        root.extend_unsampled(prompt, TokenKind::Prompt);
        let prompt_len = prompt.len() as u32;
        let is_replayable = true;
        self.trees.push(Tree { key, prompt_len, is_replayable, stream, paths: vec![root] });
        Ok(TreeId(self.trees.len() as u32 - 1))
    }

    /// Starts a new path that shares the first `at` tokens of `path`. O(ancestors), no token moves.
    ///
    /// The new path's parent is the path that owns token `at - 1`.
    ///
    /// # Errors
    /// `InvalidInput` unless `prompt_len <= at <= len(path)`.
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
        let tree = self.tree_mut(tree);
        let depth = tree.depth_at(path, at);
        let mut owner = path;
        while let Some(parent) = tree.path(owner).parent.filter(|_| at <= tree.path(owner).at) {
            owner = parent;
        }
        let ordinal = tree.paths.len() as u32;
        let stream = tree.stream.of_path(ordinal);
        tree.paths.push(Path::new(Some(owner), at, depth, stream, origin));
        Ok(PathId(ordinal))
    }

    /// Appends one sampled token to a live path.
    ///
    /// # Errors
    /// `InvalidInput` for a finished path, `NotFinite` for a log-probability or entropy that is not.
    pub fn push_token(
        &mut self,
        tree: TreeId,
        path: PathId,
        token: SampledToken,
        version: u32,
    ) -> Result<()> {
        self.live(tree, path)?;
        token.check(tree, path)?;
        self.tree_mut(tree).paths[path.index()].push_sampled(token, version);
        Ok(())
    }

    /// Appends tokens that the model did not sample: the output of a tool, or the user's text.
    pub fn push_given(&mut self, tree: TreeId, path: PathId, ids: &[u32]) -> Result<()> {
        self.live(tree, path)?;
        self.tree_mut(tree).paths[path.index()].extend_unsampled(ids, TokenKind::Given);
        Ok(())
    }

    /// Ends a segment at the path's end. A segment without tokens has none: neither a second mark
    /// at the same place nor one at the end of the prompt changes anything.
    pub fn mark(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        let len = self.live(tree, path)?.len();
        let prompt_len = self.tree(tree)?.prompt_len;
        let own = &mut self.tree_mut(tree).paths[path.index()];
        if len > own.at.max(prompt_len) && own.marks.last() != Some(&len) {
            own.marks.push(len);
            self.tree_mut(tree).deepen_forks(path, len);
        }
        Ok(())
    }

    /// Gives the path its finish reason; a path has one (law T5).
    pub fn finish(&mut self, tree: TreeId, path: PathId, reason: FinishReason) -> Result<()> {
        self.live(tree, path)?;
        self.tree_mut(tree).paths[path.index()].finish = Some(reason);
        Ok(())
    }

    /// Sets the reward of every path, tree by tree.
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
        self.tree(tree)?;
        self.tree_mut(tree).is_replayable = false;
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

    /// Checks the laws of the forest in O(tokens).
    ///
    /// # Errors
    /// `LawBroken` with the first law that does not hold.
    pub fn check(&self) -> Result<()> {
        for (t, tree) in self.trees.iter().enumerate() {
            law(tree.has_prompt(), "T3", || format!("tree {t}: prompt"))?;
            for (p, path) in tree.paths.iter().enumerate() {
                let place = || format!("tree {t}, path {p}");
                path.check_columns(&place)?;
                law(path.parent.is_none() == (p == 0), "T3", || format!("{}: parent", place()))?;
                let Some(parent) = path.parent else { continue };
                law(parent.index() < p, "T3", || format!("{}: parent is younger", place()))?;
                let owner = tree.path(parent);
                let owns = owner.at < path.at && path.at <= owner.len();
                law(owns && path.at >= tree.prompt_len, "T4", || {
                    format!("{}: leaves path {parent} at {}", place(), path.at)
                })?;
                let depth = tree.depth_at(parent, path.at);
                law(depth == path.depth_at_fork, "T4", || format!("{}: depth", place()))?;
            }
        }
        Ok(())
    }
}
