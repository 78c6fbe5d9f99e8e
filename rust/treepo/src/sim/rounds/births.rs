//! When paths were made, noted while a forest grows. A finished forest does not tell.

use crate::forest::{Forest, Tree};

/// Paths that were made at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Birth {
    /// Sampled tokens that the tree had then, each counted once.
    pub num_tokens: usize,
    /// Paths that the tree had afterwards.
    pub num_paths: usize,
}

/// Notes births, tree by tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Births {
    trees: Vec<Vec<Birth>>,
}

impl Births {
    /// Looks at the forest. A tree that is new has just been born with its first paths; of any
    /// other one, one round at most has ended since the last look.
    pub fn note(&mut self, forest: &Forest) {
        self.trees.resize(forest.trees().len(), Vec::new());
        for (births, tree) in self.trees.iter_mut().zip(forest.trees()) {
            let num_paths = tree.paths().len();
            if births.last().is_none_or(|birth| birth.num_paths < num_paths) {
                births.push(Birth { num_tokens: num_tokens(tree), num_paths });
            }
        }
    }

    /// The births of a tree, the first paths first.
    pub(super) fn of_tree(&self, tree: usize) -> &[Birth] {
        self.trees.get(tree).map_or(&[], Vec::as_slice)
    }

    /// The same births with the trees in reverse order.
    pub(in crate::sim) fn reversed(mut self) -> Self {
        self.trees.reverse();
        self
    }
}

fn num_tokens(tree: &Tree) -> usize {
    let own = |path: &crate::Path| (path.len() - path.at.max(tree.prompt_len)) as usize;
    tree.paths().iter().map(own).sum()
}
