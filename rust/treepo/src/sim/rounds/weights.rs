//! Inclusion weights, recomputed from the final tree.

use super::Replay;
use crate::error::Result;

impl Replay<'_> {
    /// The mass at the root is the number of paths; at each place where paths split, it is split
    /// evenly over what continues there.
    pub(super) fn check_weights(&self) -> Result<()> {
        for (p, path) in self.tree.paths.iter().enumerate() {
            let expected = self.weight(p);
            let is_close = (f64::from(path.weight) - expected).abs() <= 1e-5 * expected.max(1.0);
            let what = format!("path {p}: weight {}, not {expected}", path.weight);
            self.law(is_close, "T2", &what)?;
        }
        Ok(())
    }

    /// The weight of a leaf: its part of the mass at each position of its sequence.
    pub(super) fn weight(&self, p: usize) -> f64 {
        let leaf = self.path(p);
        let positions = self.tree.prompt_len..=leaf.len();
        let share = |at: u32| 1.0 / self.num_continuations(p, at) as f64;
        self.tree.paths.len() as f64 * positions.map(share).product::<f64>()
    }

    /// Paths that leave the sequence of `p` at this position, and the one that owns the token
    /// before, which goes on or ends there.
    fn num_continuations(&self, p: usize, at: u32) -> usize {
        let owner = self.path(p).owner_before(at);
        1 + self.tree.paths.iter().filter(|q| q.parent == Some(owner) && q.at == at).count()
    }
}
