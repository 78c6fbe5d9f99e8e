//! Whether draws have the documented odds: observed minus expected values, over many runs.
//!
//! Only draws that the forest shows without doubt are taken, and whether it does depends on nothing
//! that is drawn: where a leaf is cut if there is one candidate, and which of several candidates
//! comes first if no two of them can be cut at the same place.

use std::ops::Range;

use super::{Replay, Tally};
use crate::forest::FinishReason;
use crate::search::{FallbackAt, FallbackFrom};

/// One thing that may be drawn: the place where it shows, its weight, and a value.
#[derive(Debug, Clone, Copy)]
struct Chance {
    place: (usize, u32),
    weight: f64,
    value: f64,
}

impl Replay<'_> {
    /// Takes the draws of these restarts.
    pub(super) fn take_odds(&self, candidates: &[usize], forks: Range<usize>, tally: &mut Tally) {
        let first = self.path(forks.start);
        let place = (first.parent.unwrap_or(usize::MAX), first.at);
        let (from, at) = (self.config.fallback.from, self.config.fallback.at);
        if let [leaf] = candidates {
            add(tally, &format!("cut_{at:?}"), &self.cut_chances(*leaf), place);
            return;
        }
        let places: Vec<_> = candidates.iter().flat_map(|&leaf| self.places(leaf)).collect();
        let is_distinct = |p: &(usize, u32)| places.iter().filter(|q| *q == p).count() == 1;
        if places.len() == candidates.len() && places.iter().all(is_distinct) {
            let chance = |(&leaf, &place): (&usize, &(usize, u32))| {
                let weight = self.worth(leaf);
                let value = if from == FallbackFrom::Longest || from == FallbackFrom::Priority {
                    weight
                } else {
                    leaf as f64
                };
                Chance { place, weight, value }
            };
            let chances: Vec<_> = candidates.iter().zip(&places).map(chance).collect();
            add(tally, &format!("first_{from:?}"), &chances, place);
        }
    }

    fn places(&self, leaf: usize) -> Vec<(usize, u32)> {
        let place = |at: u32| (self.path(leaf).owner_before(at), at);
        self.cuts(leaf).into_iter().map(place).collect()
    }

    /// What a candidate weighs in the order.
    fn worth(&self, leaf: usize) -> f64 {
        let path = self.path(leaf);
        match (self.config.fallback.from, path.finish) {
            (FallbackFrom::Longest, _) => f64::from(path.len() - self.tree.prompt_len),
            (FallbackFrom::Priority, Some(FinishReason::Stop)) => 5.0,
            (FallbackFrom::Priority, Some(FinishReason::Depth)) => 4.0,
            (FallbackFrom::Priority, Some(FinishReason::Length)) => 3.0,
            (FallbackFrom::Priority, _) => 2.0,
            _ => 1.0,
        }
    }

    /// Where this leaf may be cut: blocks by the softmax of their mean log-probability, others
    /// evenly.
    fn cut_chances(&self, leaf: usize) -> Vec<Chance> {
        let sign = match self.config.fallback.at {
            FallbackAt::UnsureBlock => -1.0,
            FallbackAt::SureBlock => 1.0,
            _ => 0.0,
        };
        let chance = |at: u32| {
            let mean = self.block_mean(leaf, at);
            let cut = self.aligned(leaf, at);
            let place = (self.path(leaf).owner_before(cut), cut);
            let value = if sign == 0.0 { f64::from(at) } else { mean };
            Chance { place, weight: (sign * mean).exp(), value }
        };
        self.unaligned_cuts(leaf).into_iter().map(chance).collect()
    }

    /// Mean log-probability of the block that begins here.
    fn block_mean(&self, leaf: usize, at: u32) -> f64 {
        let path = self.path(leaf);
        let window = self.config.fallback.window.unwrap_or(self.config.segment_len);
        let tokens = &path.tokens[at as usize..(at + window).min(path.len()) as usize];
        tokens.iter().map(|token| f64::from(token.logprob)).sum::<f64>() / tokens.len() as f64
    }
}

/// Adds the draw of `place`. Chances that show at one place count as their mean.
fn add(tally: &mut Tally, name: &str, chances: &[Chance], place: (usize, u32)) {
    let total: f64 = chances.iter().map(|chance| chance.weight).sum();
    let value_at = |place: (usize, u32)| {
        let here = || chances.iter().filter(|chance| chance.place == place);
        let weight: f64 = here().map(|chance| chance.weight).sum();
        here().map(|chance| chance.weight * chance.value).sum::<f64>() / weight
    };
    let mean: f64 = chances.iter().map(|chance| chance.weight * chance.value).sum::<f64>() / total;
    let square = |chance: &Chance| chance.weight * (value_at(chance.place) - mean).powi(2);
    let variance = chances.iter().map(square).sum::<f64>() / total;
    tally.add_draw(name, value_at(place) - mean, variance);
}
