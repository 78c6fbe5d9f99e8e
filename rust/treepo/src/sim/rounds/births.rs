//! When restarts were made, noted while a forest grows.

use std::collections::BTreeSet;

use crate::forest::{Forest, ForkOrigin};

/// Restarts that were made while an older path of their tree was live, tree by tree. A finished
/// forest does not tell them from those that were made later.
pub type EarlyRestarts = Vec<BTreeSet<usize>>;

/// Notes early restarts.
#[derive(Debug, Clone, Default)]
pub struct Births {
    /// Paths that each tree had when it was last looked at.
    num_paths: Vec<usize>,
    early: EarlyRestarts,
}

impl Births {
    /// Looks at the forest after one token or verdict of each of its trees at most has ended a
    /// round.
    pub fn note(&mut self, forest: &Forest) {
        let trees = forest.trees();
        self.num_paths.resize(trees.len(), 0);
        self.early.resize(trees.len(), BTreeSet::new());
        for (t, tree) in trees.iter().enumerate() {
            let (old, new) = tree.paths().split_at(self.num_paths[t]);
            if old.iter().any(|path| path.finish.is_none()) {
                let restarts = (old.len()..).zip(new);
                let restarts = restarts.filter(|(_, path)| path.origin == ForkOrigin::Fallback);
                self.early[t].extend(restarts.map(|(p, _)| p));
            }
            self.num_paths[t] = tree.paths().len();
        }
    }

    /// What has been noted.
    pub fn into_early(self) -> EarlyRestarts {
        self.early
    }
}
