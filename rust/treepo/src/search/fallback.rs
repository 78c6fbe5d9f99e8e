//! Where a tree restarts when leaves are missing.

use super::walk::{backwards, completion_len};
use super::{Alignment, FallbackAt, FallbackFrom, SearchConfig};
use crate::forest::{FinishReason, Tree};
use crate::ids::PathId;
use crate::key::{Purpose, Stream};

/// Forks to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Restart {
    pub(super) path: PathId,
    /// From the end of the prompt to before the path's end, with less than `max_depth` segments
    /// before it.
    pub(super) at: u32,
    pub(super) copies: u32,
}

/// Buffers of [`restarts`].
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    candidates: Vec<PathId>,
    keys: Vec<(f64, PathId)>,
    boundaries: Vec<u32>,
    blocks: Vec<Block>,
}

/// Sampled tokens of a block of a completion.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    logprob: f64,
    num_sampled: u32,
}

/// Writes the restarts that give at most `missing` new paths: leaves in an order by
/// [`FallbackFrom`], each cut once by [`FallbackAt`], `copies` forks each, until nothing is missing
/// or no leaf is left. Without a candidate the tree restarts at the prompt with its initial
/// divergence; with [`FallbackFrom::Nothing`] there is no restart.
///
/// Every draw is keyed by the round and the path or its place in the order, so that no draw moves
/// another. O(paths log paths), and O(tokens) of each leaf that is cut; allocates nothing once
/// `scratch` and `out` have grown.
///
/// Source: `TreePO` (arXiv 2508.17445), algorithm 1, and the options of its published code.
pub(super) fn restarts(
    config: &SearchConfig,
    tree: &Tree,
    round: u32,
    missing: u32,
    scratch: &mut Scratch,
    out: &mut Vec<Restart>,
) {
    out.clear();
    if missing == 0 || config.fallback.from == FallbackFrom::Nothing {
        return;
    }
    order(config.fallback.from, tree, round, scratch);
    let copies_each = config.fallback.copies.unwrap_or(config.branch_factor).max(1);
    let mut missing = missing;
    for i in 0..scratch.candidates.len() {
        if missing == 0 {
            break;
        }
        let path = scratch.candidates[i];
        let copies = copies_each.min(missing);
        missing -= copies;
        out.push(Restart { path, at: cut(config, tree, round, path, scratch), copies });
    }
    if out.is_empty() {
        let copies = config.initial_divergence.min(missing);
        out.push(Restart { path: PathId(0), at: tree.prompt_len, copies });
    }
}

/// Writes the candidates to `scratch`, the first one first.
fn order(from: FallbackFrom, tree: &Tree, round: u32, scratch: &mut Scratch) {
    let is_candidate = |&path: &PathId| {
        let priority = tree.own(path).finish.and_then(priority);
        let qualifies = match from {
            FallbackFrom::Nothing => false,
            FallbackFrom::Answered => tree.own(path).finish == Some(FinishReason::Stop),
            FallbackFrom::All | FallbackFrom::Priority | FallbackFrom::Longest => {
                priority.is_some()
            }
        };
        qualifies && completion_len(tree, path) > 0
    };
    scratch.candidates.clear();
    let paths = (0..tree.paths().len() as u32).map(PathId);
    scratch.candidates.extend(paths.filter(is_candidate));
    match from {
        FallbackFrom::Nothing | FallbackFrom::Answered | FallbackFrom::All => {
            shuffle(&mut scratch.candidates, tree.stream(), round);
        }
        FallbackFrom::Priority => draw_without_replacement(tree, round, scratch, |path| {
            tree.own(path).finish.and_then(priority).unwrap_or(1)
        }),
        FallbackFrom::Longest => {
            draw_without_replacement(tree, round, scratch, |path| completion_len(tree, path));
        }
    }
}

/// How much a leaf is worth as a restart; none for one that does not count.
fn priority(reason: FinishReason) -> Option<u32> {
    match reason {
        FinishReason::Stop => Some(5),
        FinishReason::Depth => Some(4),
        FinishReason::Length => Some(3),
        FinishReason::Repetition => Some(2),
        FinishReason::Pruned | FinishReason::Abort => None,
    }
}

/// A keyed Fisher-Yates shuffle.
fn shuffle(paths: &mut [PathId], stream: Stream, round: u32) {
    for i in (1..paths.len()).rev() {
        let j = stream.below(Purpose::FallbackOrder, counter(round, i as u32), i as u32 + 1);
        paths.swap(i, j as usize);
    }
}

/// Orders the candidates as repeated draws without replacement with probabilities in proportion to
/// their weights (Plackett-Luce), by the Gumbel keys `ln(weight) - ln(-ln(u))`, largest first. Equal
/// keys go by path.
fn draw_without_replacement(
    tree: &Tree,
    round: u32,
    scratch: &mut Scratch,
    weight: impl Fn(PathId) -> u32,
) {
    let key = |path: PathId| {
        let u = tree.stream().uniform(Purpose::FallbackOrder, counter(round, path.0));
        f64::from(weight(path)).ln() - (-u.ln()).ln()
    };
    scratch.keys.clear();
    scratch.keys.extend(scratch.candidates.iter().map(|&path| (key(path), path)));
    scratch.keys.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    scratch.candidates.clear();
    scratch.candidates.extend(scratch.keys.iter().map(|&(_, path)| path));
}

/// Where `path` is cut.
fn cut(config: &SearchConfig, tree: &Tree, round: u32, path: PathId, scratch: &mut Scratch) -> u32 {
    let (fallback, stream) = (&config.fallback, tree.stream());
    let window = fallback.window.unwrap_or(config.segment_len).max(1);
    let below = |n| stream.below(Purpose::FallbackCut, counter(round, path.0), n);
    tree.fill_boundaries(path, &mut scratch.boundaries);
    let at = match fallback.at {
        FallbackAt::Boundary => scratch.boundaries[below(scratch.boundaries.len() as u32) as usize],
        FallbackAt::Window => {
            let num_windows = completion_len(tree, path).div_ceil(window);
            let max_back = fallback.max_windows.unwrap_or(u32::MAX).clamp(1, num_windows);
            tree.prompt_len + (num_windows - 1 - below(max_back)) * window
        }
        FallbackAt::LowestLogprob => lowest_logprob(tree, path),
        FallbackAt::UnsureBlock | FallbackAt::SureBlock => {
            let u = stream.uniform(Purpose::FallbackCut, counter(round, path.0));
            let sign = if fallback.at == FallbackAt::SureBlock { 1.0 } else { -1.0 };
            tree.prompt_len + block(tree, path, window, sign, u, &mut scratch.blocks) * window
        }
        FallbackAt::Prompt => tree.prompt_len,
    };
    place(config, &scratch.boundaries, at)
}

/// Moves a cut down to a boundary if it has to lie on one, or if no segment may follow it.
fn place(config: &SearchConfig, boundaries: &[u32], at: u32) -> u32 {
    let depth = boundaries.partition_point(|&boundary| boundary <= at).saturating_sub(1);
    let max_depth = (config.max_depth as usize).saturating_sub(1);
    if depth > max_depth {
        boundaries[max_depth]
    } else if config.fallback.alignment == Alignment::Segment {
        boundaries[depth]
    } else {
        at
    }
}

/// The first of the sampled tokens with the lowest log-probability; the end of the prompt without
/// sampled tokens.
fn lowest_logprob(tree: &Tree, path: PathId) -> u32 {
    let mut lowest = (f32::INFINITY, tree.prompt_len);
    for token in backwards(tree, path).filter(|token| token.is_sampled) {
        if token.logprob <= lowest.0 {
            lowest = (token.logprob, token.position);
        }
    }
    lowest.1
}

/// Draws a block of `window` tokens of the completion by the softmax of `sign` times the mean
/// log-probability of its sampled tokens; one without sampled tokens is never drawn.
fn block(
    tree: &Tree,
    path: PathId,
    window: u32,
    sign: f64,
    u: f64,
    blocks: &mut Vec<Block>,
) -> u32 {
    blocks.clear();
    let num_blocks = completion_len(tree, path).div_ceil(window);
    blocks.resize(num_blocks as usize, Block::default());
    for token in backwards(tree, path).filter(|token| token.is_sampled) {
        let block = &mut blocks[((token.position - tree.prompt_len) / window) as usize];
        block.logprob += f64::from(token.logprob);
        block.num_sampled += 1;
    }
    let score = |block: &Block| sign * block.logprob / f64::from(block.num_sampled);
    let drawable = || blocks.iter().zip(0..).filter(|(block, _)| block.num_sampled > 0);
    let max = drawable().map(|(block, _)| score(block)).fold(f64::NEG_INFINITY, f64::max);
    let weight = |block: &Block| (score(block) - max).exp();
    let mut rest = u * drawable().map(|(block, _)| weight(block)).sum::<f64>();
    let mut drawn = 0;
    for (block, i) in drawable() {
        drawn = i;
        rest -= weight(block);
        if rest < 0.0 {
            break;
        }
    }
    drawn
}

fn counter(round: u32, low: u32) -> u64 {
    u64::from(round) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests;
