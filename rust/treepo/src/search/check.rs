//! The laws of the search.

use super::budget::Tokens;
use super::state::{Phase, TreeState};
use super::{FallbackFrom, PrunedLeaves, Search, Total};
use crate::error::{Result, law};
use crate::forest::{FinishReason, Tree};

impl Search {
    /// Checks the laws of the search and of its forest in O(tokens).
    ///
    /// # Errors
    /// `LawBroken` with the first law that does not hold.
    pub fn check(&self) -> Result<()> {
        self.forest.check()?;
        for (t, (tree, state)) in self.forest.trees().iter().zip(&self.trees).enumerate() {
            self.check_width(t, tree, state)?;
            self.check_paths(t, tree, state)?;
            check_counters(t, tree, state)?;
        }
        let num_open = self.trees.iter().filter(|state| !state.is_done).count();
        law(num_open == self.num_open as usize, "T2", || format!("{num_open} trees are open"))
    }

    /// T2: the leaves that count are `width` in the end and never more, live paths included.
    fn check_width(&self, t: usize, tree: &Tree, state: &TreeState) -> Result<()> {
        let (config, width) = (&self.config, self.config.width);
        let with = |reason| tree.paths().iter().filter(|p| p.finish == Some(reason)).count() as u32;
        let (pruned, aborted) = (with(FinishReason::Pruned), with(FinishReason::Abort));
        let ended = tree.paths().iter().filter(|path| path.finish.is_some()).count() as u32;
        let expected = match config.prune.leaves {
            PrunedLeaves::Count => 0,
            PrunedLeaves::AreReplaced => (pruned - state.num_rewound).min(width - 1),
        };
        law(state.num_replaced == expected, "T2", || {
            format!("tree {t}: {} of {pruned} pruned leaves are replaced", state.num_replaced)
        })?;
        let counted = ended - aborted - state.num_replaced - state.num_rewound;
        law(counted == state.num_leaves, "T2", || format!("tree {t}: {counted} leaves"))?;
        law(state.num_taken() <= width, "T2", || {
            format!("tree {t}: {counted} leaves and {} live paths", state.live.len())
        })?;
        let fewest = match config.budget.total {
            Total::Trajectories => width,
            Total::UniqueTokens | Total::PublishedTokens => config.budget.min_width.min(width),
        };
        let may_end_short = aborted > 0 || config.fallback.from == FallbackFrom::Nothing;
        law(!state.is_done || counted >= fewest || may_end_short, "T2", || {
            format!("tree {t} is done with {counted} of {width} leaves")
        })
    }

    /// T1 and T5: lengths, depths, and one finish reason a leaf.
    fn check_paths(&self, t: usize, tree: &Tree, state: &TreeState) -> Result<()> {
        law(tree.paths().len() == state.paths.len(), "T5", || format!("tree {t}: paths"))?;
        for (p, (path, own)) in tree.paths().iter().zip(&state.paths).enumerate() {
            let finished = own.phase == Phase::Finished;
            law(finished == path.finish.is_some(), "T5", || format!("tree {t}, path {p}"))?;
            let fits = path.len() <= state.max_len && path.depth() <= self.config.max_depth;
            law(fits, "T1", || format!("tree {t}, path {p}: length {}", path.len()))?;
            if let Phase::Runs { segment_end } = own.phase {
                let is_open = path.len() < segment_end
                    && segment_end <= state.max_len
                    && segment_end - path.len() <= self.config.segment_len
                    && path.depth() < self.config.max_depth;
                law(is_open, "T1", || format!("tree {t}, path {p}: segment to {segment_end}"))?;
            }
        }
        Ok(())
    }
}

/// The counters are what a count gives.
fn check_counters(t: usize, tree: &Tree, state: &TreeState) -> Result<()> {
    let own = |path: &crate::Path| u64::from(path.len() - path.at);
    let completion = |path: &crate::Path| u64::from(path.len() - tree.prompt_len);
    let live = tree.paths().iter().filter(|path| path.finish.is_none());
    let tokens = Tokens {
        unique: tree.paths().iter().map(own).sum::<u64>() - u64::from(tree.prompt_len),
        published: tree.paths().iter().map(completion).sum(),
        live: live.clone().map(completion).sum(),
    };
    law(tokens == state.tokens, "T2", || format!("tree {t}: {tokens:?} of {:?}", state.tokens))?;
    let runs = |path: &&crate::PathId| matches!(state.path(**path).phase, Phase::Runs { .. });
    let pending = |path: &&crate::PathId| state.path(**path).phase == Phase::Pending;
    let counted = (
        live.count(),
        state.live.iter().filter(runs).count() as u32,
        state.live.iter().filter(pending).count() as u32,
    );
    let expected = (state.live.len(), state.num_running, state.num_pending);
    law(counted == expected, "T2", || format!("tree {t}: live paths {counted:?}, {expected:?}"))?;
    let moves = state.is_done || counted.1 + counted.2 > 0;
    law(moves, "S1", || format!("tree {t} is not done and nothing of it runs"))
}
