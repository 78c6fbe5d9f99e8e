//! Pruning by confidence: whether one allowed threshold explains every path.

use super::{Replay, State};
use crate::error::Result;
use crate::forest::FinishReason;
use crate::search::PruneBy;
use crate::sim::caller::Ruling;
use crate::sim::view::Token;

/// What float rounding may move a mean by.
const TOLERANCE: f64 = 1e-5;

/// A confidence that was looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) round: usize,
    pub(super) path: usize,
    pub(super) confidence: f64,
    pub(super) is_pruned: bool,
}

/// A reading of "the tree's own first leaves".
#[derive(Debug, Clone, Copy)]
struct Reading {
    /// Leaves whose confidence was never looked at count as first leaves.
    counts_unseen: bool,
    /// The leaves beyond the asked number that ended in the same round belong to them.
    whole_round: bool,
}

impl Replay<'_> {
    pub(super) fn prunes_by_score(&self) -> bool {
        self.config.prune.by == PruneBy::Score
    }

    /// Whether a completion of this path is looked at when its sequence has this length.
    pub(super) fn looks_at(&self, p: usize, len: u32) -> bool {
        self.confidence(p, len).is_some()
    }

    /// The windowed confidence of the path at this length, where it is looked at.
    pub(super) fn confidence(&self, p: usize, len: u32) -> Option<f64> {
        let prune = &self.config.prune;
        let completion = len - self.tree.prompt_len;
        if completion == 0 || !completion.is_multiple_of(prune.window) {
            return None;
        }
        let tokens = &self.path(p).tokens[(len - prune.window) as usize..len as usize];
        let sum = |value: fn(&Token) -> f32| {
            tokens.iter().map(|token| f64::from(value(token))).sum::<f64>()
        };
        let mean = |sum: f64| sum / f64::from(prune.window);
        match prune.by {
            PruneBy::Nothing | PruneBy::Score => None,
            PruneBy::Logprob => Some(mean(sum(|token| token.logprob))),
            PruneBy::Entropy => Some(-mean(sum(|token| token.entropy))),
        }
    }

    /// T5: a path is pruned exactly where its confidence is below the threshold.
    pub(super) fn check_thresholds(&self, state: &State) -> Result<()> {
        let prune = &self.config.prune;
        if prune.by == PruneBy::Nothing {
            return Ok(());
        }
        if prune.warmup_leaves == 0 {
            let threshold = f64::from(prune.threshold);
            return self.check_between(state, 0, threshold, threshold);
        }
        let mut last = Ok(());
        for counts_unseen in [false, true] {
            for whole_round in [false, true] {
                let reading = Reading { counts_unseen, whole_round };
                last = self.check_warmup(state, reading);
                if last.is_ok() {
                    return Ok(());
                }
            }
        }
        last
    }

    /// Some threshold between `least` and `most` explains the looks of the rounds behind `round`,
    /// and nothing was pruned before.
    fn check_between(&self, state: &State, round: usize, least: f64, most: f64) -> Result<()> {
        let early = state.looks.iter().find(|look| look.is_pruned && look.round <= round);
        let path = early.map(|look| look.path);
        self.law(path.is_none(), "T5", &format!("{path:?} is pruned before the threshold is"))?;
        let late = || state.looks.iter().filter(|look| look.round > round);
        let pruned = late().filter(|look| look.is_pruned).map(|look| look.confidence);
        let kept = late().filter(|look| !look.is_pruned).map(|look| look.confidence);
        let above = pruned.fold(least, f64::max) - TOLERANCE;
        let below = kept.fold(most, f64::min) + TOLERANCE;
        self.law(above <= below, "T5", &format!("no threshold of {least}..={most} prunes so"))
    }

    fn check_warmup(&self, state: &State, reading: Reading) -> Result<()> {
        let prune = &self.config.prune;
        let (mut lowest, mut num_leaves, mut last_round) = (Vec::new(), 0, usize::MAX);
        for &(p, round) in &state.leaves {
            if round > last_round || (num_leaves == prune.warmup_leaves && !reading.whole_round) {
                break;
            }
            let confidence = self.lowest(p);
            num_leaves += u32::from(confidence.is_some() || reading.counts_unseen);
            lowest.extend(confidence);
            if num_leaves >= prune.warmup_leaves {
                last_round = round;
            }
        }
        lowest.sort_unstable_by(f64::total_cmp);
        let Some(end) = lowest.len().checked_sub(1) else {
            return self.check_between(state, usize::MAX, 0.0, 0.0);
        };
        let quantile = f64::from(prune.warmup_quantile);
        let low = (quantile * end as f64 - TOLERANCE).floor().max(0.0) as usize;
        let high = (quantile * (end + 1) as f64 + TOLERANCE).ceil() as usize;
        self.check_between(state, last_round, lowest[low], lowest[high.min(end)])
    }

    /// The lowest confidence of a leaf, over all of its sequence.
    fn lowest(&self, p: usize) -> Option<f64> {
        let len = self.path(p).len();
        let looks: Vec<f64> = if self.prunes_by_score() {
            let marks = self.path(p).marks.iter().filter(|&&mark| mark < len);
            let scores = marks.filter_map(|&mark| self.score(p, mark));
            scores.map(f64::from).collect()
        } else {
            let lens = self.tree.prompt_len + 1..=len;
            lens.filter_map(|len| self.confidence(p, len)).collect()
        };
        looks.into_iter().min_by(f64::total_cmp)
    }

    /// The caller's score of the segment that ends here.
    pub(super) fn score(&self, p: usize, len: u32) -> Option<f32> {
        match self.ruling(p, len) {
            Some(Ruling::Continue(score)) => Some(score),
            _ => None,
        }
    }

    /// Counts what the leaves tell.
    pub(super) fn tally_leaves(&self, state: &mut State) {
        let is_pruned = |p: usize| self.path(p).finish == Some(FinishReason::Pruned);
        let pruned = state.leaves.iter().filter(|leaf| is_pruned(leaf.0)).count();
        let replaced = state.leaves.len() - self.count(&state.leaves);
        if pruned > 0 {
            state.tally.add_events("prunes", pruned as u64);
            state.tally.add_events("replaced_prunes", replaced as u64);
        }
        let by_warmup = pruned > 0 && self.config.prune.warmup_leaves > 0;
        state.tally.count_if(by_warmup, "warmed_up_prunes");
    }
}
