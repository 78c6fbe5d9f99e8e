//! Where a tree restarts when no path lives and leaves are missing.

use super::SearchConfig;
use crate::forest::{FinishReason, Tree};
use crate::ids::PathId;
use crate::key::{Purpose, Stream};

/// Forks to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Restart {
    pub(super) path: PathId,
    pub(super) at: u32,
    pub(super) copies: u32,
}

/// Restarts that give at most `missing` new paths: answered leaves in random order, each cut at a
/// uniformly drawn segment boundary before its end, `branch_factor` copies each. A leaf that was
/// cut short by a limit is no candidate. Without a candidate the tree restarts at the prompt.
pub(super) fn restarts(
    config: &SearchConfig,
    tree: &Tree,
    round: u32,
    missing: u32,
) -> Vec<Restart> {
    let stream = tree.stream();
    let answered = |p: &u32| tree.own(PathId(*p)).finish == Some(FinishReason::Stop);
    let candidates = (0..tree.paths().len() as u32).filter(answered).map(PathId).collect();
    let mut missing = missing;
    let mut restarts = Vec::new();
    let mut boundaries = Vec::new();
    for path in shuffled(candidates, stream, round) {
        if missing == 0 {
            break;
        }
        tree.fill_boundaries(path, &mut boundaries);
        let counter = u64::from(round) << 32 | u64::from(path.0);
        let cut = stream.below(Purpose::FallbackCut, counter, boundaries.len() as u32);
        let copies = config.branch_factor.min(missing);
        missing -= copies;
        restarts.push(Restart { path, at: boundaries[cut as usize], copies });
    }
    if restarts.is_empty() {
        let copies = config.initial_divergence.min(missing);
        restarts.push(Restart { path: PathId(0), at: tree.prompt_len, copies });
    }
    restarts
}

/// A keyed Fisher-Yates shuffle.
fn shuffled(mut paths: Vec<PathId>, stream: Stream, round: u32) -> Vec<PathId> {
    for i in (1..paths.len()).rev() {
        let counter = u64::from(round) << 32 | i as u64;
        let j = stream.below(Purpose::FallbackOrder, counter, i as u32 + 1);
        paths.swap(i, j as usize);
    }
    paths
}
