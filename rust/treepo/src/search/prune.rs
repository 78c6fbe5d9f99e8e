//! Giving up on paths that the model is unsure of.
//!
//! After `DeepConf` (arXiv 2508.15260): a path ends when the confidence of a window of its tokens
//! falls below a threshold, which is given or comes from the tree's first leaves. `DeepConf`'s
//! confidence of a token is the mean negative log-probability of the k most likely tokens, which
//! the forest does not hold. Here it is the log-probability of the sampled token or minus the
//! entropy of the distribution; windows do not overlap, so that confidence is looked at at places
//! that only the path decides.

use serde::{Deserialize, Serialize};

use super::walk::{backwards, completion_len};
use super::{PruneBy, PruneConfig};
use crate::forest::{PathToken, Tree};
use crate::ids::PathId;

/// Confidence of the last `window` sampled tokens of a path's completion, wherever it forked; given
/// tokens are passed over. O(window).
///
/// There is none unless the newest token is sampled, the completion's length is a positive multiple
/// of `window`, it has `window` sampled tokens, and the rule is [`PruneBy::Logprob`] or
/// [`PruneBy::Entropy`].
pub(super) fn confidence(config: &PruneConfig, tree: &Tree, path: PathId) -> Option<f32> {
    confidence_of(config, completion_len(tree, path), backwards(tree, path))
}

/// Confidence of a completion of `len` tokens, which come newest first.
fn confidence_of(
    config: &PruneConfig,
    len: u32,
    tokens: impl Iterator<Item = PathToken>,
) -> Option<f32> {
    let measure = match config.by {
        PruneBy::Logprob => |token: PathToken| f64::from(token.logprob),
        PruneBy::Entropy => |token: PathToken| -f64::from(token.entropy),
        PruneBy::Nothing | PruneBy::Score => return None,
    };
    if len == 0 || !len.is_multiple_of(config.window) {
        return None;
    }
    let mut tokens = tokens.peekable();
    if !tokens.peek()?.is_sampled {
        return None;
    }
    let (mut sum, mut num_tokens) = (0.0, 0);
    for token in tokens.filter(|token| token.is_sampled).take(config.window as usize) {
        sum += measure(token);
        num_tokens += 1;
    }
    (num_tokens == config.window).then(|| (sum / f64::from(num_tokens)) as f32)
}

/// The lowest [`confidence`] that a path has had, if it has had one. O(length) without given
/// tokens, and never more than `window` times that.
pub(super) fn lowest_confidence(config: &PruneConfig, tree: &Tree, path: PathId) -> Option<f32> {
    let mut lowest: Option<f32> = None;
    let mut tokens = backwards(tree, path);
    for len in (1..=completion_len(tree, path)).rev() {
        if let Some(confidence) = confidence_of(config, len, tokens.clone()) {
            lowest = Some(lowest.map_or(confidence, |lowest| lowest.min(confidence)));
        }
        tokens.next();
    }
    lowest
}

/// The confidence below which a tree's paths are given up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Threshold {
    value: Option<f32>,
    /// Leaves that are still to be observed.
    num_missing: u32,
    quantile: f32,
    /// Lowest confidences of the observed leaves that have one.
    lowest: Vec<f32>,
}

/// Leaves of a warm-up that room is made for beforehand.
const MAX_RESERVED: u32 = 1 << 10;

impl Threshold {
    /// The configured threshold, or none until `warmup_leaves` leaves have been observed.
    pub(super) fn new(config: &PruneConfig) -> Self {
        Self {
            value: (config.warmup_leaves == 0).then_some(config.threshold),
            num_missing: config.warmup_leaves,
            quantile: config.warmup_quantile,
            lowest: Vec::with_capacity(config.warmup_leaves.min(MAX_RESERVED) as usize),
        }
    }

    /// Observes a finished leaf that counts; the last one of the warm-up sets the threshold, later
    /// ones change nothing.
    ///
    /// Which of a round's leaves finishes first depends on the schedule. So leaves are observed at
    /// the round's end, by path: then the threshold is a function of the tree (law S4).
    pub(super) fn observe_leaf(&mut self, config: &PruneConfig, tree: &Tree, path: PathId) {
        if self.is_warming_up() {
            self.observe_lowest(lowest_confidence(config, tree, path));
        }
    }

    /// As [`Threshold::observe_leaf`], for a leaf with this lowest confidence. A leaf without one,
    /// as it is shorter than a window, is counted but has no part in the quantile.
    pub(super) fn observe_lowest(&mut self, lowest: Option<f32>) {
        if self.num_missing == 0 {
            return;
        }
        self.num_missing -= 1;
        self.lowest.extend(lowest);
        if self.num_missing == 0 {
            self.lowest.sort_unstable_by(f32::total_cmp);
            self.value = quantile(&self.lowest, self.quantile);
        }
    }

    /// Whether it still waits for leaves.
    pub(super) fn is_warming_up(&self) -> bool {
        self.num_missing > 0
    }

    /// The threshold, once there is one.
    pub(super) fn value(&self) -> Option<f32> {
        self.value
    }
}

/// Whether a path with this confidence is given up: there is a threshold and it lies below it.
pub(super) fn should_prune(
    config: &PruneConfig,
    threshold: &Threshold,
    confidence: Option<f32>,
) -> bool {
    let is_below = |confidence| threshold.value().is_some_and(|threshold| confidence < threshold);
    config.by != PruneBy::Nothing && confidence.is_some_and(is_below)
}

/// Quantile of ascending values with linear interpolation between neighbours (numpy's default); none
/// of no values.
fn quantile(ascending: &[f32], quantile: f32) -> Option<f32> {
    let last = ascending.len().checked_sub(1)?;
    let place = f64::from(quantile.clamp(0.0, 1.0)) * last as f64;
    let below = (place as usize).min(last);
    let above = (below + 1).min(last);
    let (low, high) = (f64::from(ascending[below]), f64::from(ascending[above]));
    Some((low + (high - low) * (place - below as f64)) as f32)
}

#[cfg(test)]
mod tests;
