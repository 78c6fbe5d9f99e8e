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
            return self.check_threshold(state, 0, threshold);
        }
        self.check_warmup(state)
    }

    /// This threshold explains the looks of the rounds behind `round`, and nothing was pruned
    /// before.
    fn check_threshold(&self, state: &State, round: usize, threshold: f64) -> Result<()> {
        for look in &state.looks {
            let Look { path, confidence, is_pruned, .. } = *look;
            let is_close = (confidence - threshold).abs() < TOLERANCE;
            let expected = look.round > round && confidence < threshold;
            let fits = is_pruned == expected || (is_close && look.round > round);
            let what = format!("path {path}: {confidence} by {threshold}, pruned: {is_pruned}");
            self.law(fits, "T5", &what)?;
        }
        Ok(())
    }

    /// The threshold is a quantile of the lowest confidences of the first leaves that count, by
    /// round and path, from the end of the round of the last of them on. Leaves without a
    /// confidence have no part in it.
    fn check_warmup(&self, state: &State) -> Result<()> {
        let prune = &self.config.prune;
        let counts = |p: usize| self.path(p).finish.is_some_and(FinishReason::counts);
        let leaves = state.leaves.iter().filter(|leaf| counts(leaf.0));
        let first: Vec<_> = leaves.take(prune.warmup_leaves as usize).collect();
        let lowest = first.iter().filter_map(|leaf| self.lowest(leaf.0));
        let mut lowest: Vec<f64> = lowest.collect();
        lowest.sort_unstable_by(f64::total_cmp);
        let is_warm = first.len() == prune.warmup_leaves as usize && !lowest.is_empty();
        match first.last() {
            Some(last) if is_warm => self.check_threshold(state, last.1, self.quantile(&lowest)),
            _ => self.check_threshold(state, usize::MAX, 0.0),
        }
    }

    /// A quantile of ascending values, with linear interpolation.
    fn quantile(&self, values: &[f64]) -> f64 {
        let place = f64::from(self.config.prune.warmup_quantile) * (values.len() - 1) as f64;
        let (low, high) = (place.floor() as usize, place.ceil() as usize);
        values[low] + (values[high] - values[low]) * place.fract()
    }

    /// The lowest confidence of a leaf, over all of its sequence.
    fn lowest(&self, p: usize) -> Option<f64> {
        let path = self.path(p);
        let looks: Vec<f64> = if self.prunes_by_score() {
            let marks = path.marks.iter().filter(|&&mark| mark < path.len());
            marks.filter_map(|&mark| self.score(p, mark)).map(f64::from).collect()
        } else {
            let lens = self.tree.prompt_len + 1..=path.len();
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
