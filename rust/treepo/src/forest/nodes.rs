//! Nodes: maximal runs of tokens between segment marks and fork positions, derived on demand.

use super::{Forest, Tree};
use crate::ids::PathId;

/// The nodes of a forest in depth-first preorder: parents first, a subtree is contiguous, the
/// continuing path before the forks and these by path. A prompt is one node, the root of its tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Tree of each node.
    pub tree: Vec<i32>,
    /// Number of the path that owns the node's tokens, through all trees.
    pub path: Vec<i32>,
    /// Absolute position of the node's first token.
    pub start: Vec<i32>,
    /// Absolute position behind the node's last token.
    pub end: Vec<i32>,
    /// The parent node, -1 for a root.
    pub parent: Vec<i32>,
    /// Segments from the root, whose depth is 0.
    pub depth: Vec<i32>,
    /// Index behind the last node of the node's subtree.
    pub subtree_end: Vec<i32>,
    /// For each path, the node that holds its last token.
    pub leaf: Vec<i32>,
}

/// A node that waits to be visited.
struct Visit {
    path: PathId,
    start: u32,
    parent: i32,
    depth: i32,
}

/// Where a tree's paths split: for each path its inner cuts and the paths that leave it.
struct Splits {
    /// (position, whether a segment ends there), ascending and unique, per path.
    cuts: Vec<Vec<(u32, bool)>>,
    /// (position, child), ascending, per path.
    forks: Vec<Vec<(u32, PathId)>>,
}

impl Splits {
    fn of(tree: &Tree) -> Self {
        let mut cuts = vec![Vec::new(); tree.paths.len()];
        let mut forks = vec![Vec::new(); tree.paths.len()];
        cuts[0].push((tree.prompt_len, true));
        for (id, path) in (0..).map(PathId).zip(&tree.paths) {
            cuts[id.index()].extend(tree.own_marks(id).map(|mark| (mark, true)));
            if let Some(parent) = path.parent() {
                forks[parent.index()].push((path.at, id));
                cuts[parent.index()].push((path.at, false));
            }
        }
        for list in &mut cuts {
            list.sort_unstable_by_key(|&(at, is_mark)| (at, !is_mark));
            list.dedup_by_key(|&mut (at, _)| at);
        }
        for list in &mut forks {
            list.sort_unstable();
        }
        Self { cuts, forks }
    }

    /// The first cut of the path behind `start`, or its end: (position, whether a segment ends).
    fn end_of(&self, path: PathId, start: u32, len: u32) -> (u32, bool) {
        let cuts = &self.cuts[path.index()];
        let next = cuts.partition_point(|&(at, _)| at <= start);
        cuts.get(next).copied().filter(|&(at, _)| at <= len).unwrap_or((len, true))
    }

    fn forks_at(&self, path: PathId, at: u32) -> impl DoubleEndedIterator<Item = PathId> + '_ {
        let forks = &self.forks[path.index()];
        let range = forks.partition_point(|f| f.0 < at)..forks.partition_point(|f| f.0 <= at);
        forks[range].iter().map(|&(_, child)| child)
    }
}

impl Forest {
    /// Derives the nodes in one pass, O((marks + paths) log paths).
    pub fn nodes(&self) -> Nodes {
        let mut nodes = Nodes { leaf: vec![-1; self.num_paths()], ..Nodes::default() };
        let mut first_path = 0;
        for (t, tree) in self.trees.iter().enumerate() {
            nodes.push_tree(t as i32, tree, first_path);
            first_path += tree.paths.len() as i32;
        }
        nodes.close_subtrees();
        nodes
    }
}

impl Nodes {
    fn push_tree(&mut self, t: i32, tree: &Tree, first_path: i32) {
        let splits = Splits::of(tree);
        let mut stack = vec![Visit { path: PathId(0), start: 0, parent: -1, depth: 0 }];
        while let Some(Visit { path, start, parent, depth }) = stack.pop() {
            let number = first_path + path.0 as i32;
            let len = tree.own(path).len();
            if start == len {
                self.leaf[number as usize] = parent; // a path without own tokens
                continue;
            }
            let (end, ends_segment) = splits.end_of(path, start, len);
            let node = self.path.len() as i32;
            self.tree.push(t);
            self.path.push(number);
            self.start.push(start as i32);
            self.end.push(end as i32);
            self.parent.push(parent);
            self.depth.push(depth);
            let depth = depth + i32::from(ends_segment);
            let visit = |path| Visit { path, start: end, parent: node, depth };
            stack.extend(splits.forks_at(path, end).rev().map(visit));
            if end < len {
                stack.push(visit(path));
            } else {
                self.leaf[number as usize] = node;
            }
        }
    }

    fn close_subtrees(&mut self) {
        self.subtree_end = (1..=self.path.len() as i32).collect();
        for node in (0..self.path.len()).rev() {
            if let Ok(parent) = usize::try_from(self.parent[node]) {
                self.subtree_end[parent] = self.subtree_end[parent].max(self.subtree_end[node]);
            }
        }
    }
}
