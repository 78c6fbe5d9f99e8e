//! How many forks a round has.
//!
//! With `A` live paths, `f` that finished in the round and `F` leaves, a round ends with
//! `max(A, min(W - F, N f + N A))` live paths. Token totals are bounded from both sides only.

use std::collections::BTreeSet;

use super::{Live, Replay, Round, State, Tally};
use crate::error::Result;
use crate::search::{BranchBy, FallbackFrom, Total, Transfer};

impl Replay<'_> {
    /// The paths that start at the prompt.
    pub(super) fn check_divergence(&self, first: usize, tally: &mut Tally) -> Result<()> {
        let config = self.config;
        let range = self.divergences();
        let (least, most) = (*range.start(), *range.end());
        let may_be_fewer = config.budget.total != Total::Trajectories || self.is_opportunistic();
        let fits = first <= most && (first >= least || may_be_fewer);
        let what = format!("initial divergence {first}, not in {least}..={most}");
        self.law(fits, "T2", &what)?;
        tally.count_if(first > least, "drawn_divergences");
        Ok(())
    }

    /// Paths that may start at the prompt together.
    fn divergences(&self) -> std::ops::RangeInclusive<usize> {
        let config = self.config;
        let least = config.initial_divergence;
        let most = config.max_initial_divergence.unwrap_or(least);
        least.min(config.width) as usize..=most.min(config.width) as usize
    }

    /// Factors that a round may have.
    fn factors(&self) -> std::ops::RangeInclusive<usize> {
        let config = self.config;
        let most = config.max_branch_factor.unwrap_or(config.branch_factor);
        config.branch_factor as usize..=most as usize
    }

    /// Numbers of branches that the rules allow beside `restarts` restarts of the same round.
    pub(super) fn branch_counts(
        &self,
        state: &State,
        round: &Round,
        restarts: usize,
    ) -> BTreeSet<usize> {
        let num_live = round.live.len();
        if num_live == 0 {
            return [0].into();
        }
        let mut counts = BTreeSet::new();
        for factor in self.factors() {
            for missing in [round.missing, round.missing.saturating_sub(restarts)] {
                for finished in self.transfers(round) {
                    let wanted = factor * (num_live + finished);
                    counts.insert(wanted.min(missing).max(num_live) - num_live);
                }
            }
        }
        if let Some(candidates) = self.num_token_forks(round) {
            let by_width = round.missing.saturating_sub(num_live);
            counts.insert(by_width);
            counts = counts.into_iter().map(|count| count.min(candidates)).collect();
        }
        self.limit(counts, self.payable(state, round), num_live)
    }

    /// Finished paths that pass their forks on. Pruned ones that do not count may or may not.
    fn transfers(&self, round: &Round) -> BTreeSet<usize> {
        match self.config.budget.transfer {
            Transfer::Off => [0].into(),
            Transfer::On => [round.num_counted, round.num_finished].into(),
        }
    }

    /// Lowers counts to what the tokens left pay for.
    fn limit(
        &self,
        counts: BTreeSet<usize>,
        (least, most): (usize, usize),
        num_live: usize,
    ) -> BTreeSet<usize> {
        if self.is_opportunistic() {
            return counts.into_iter().flat_map(|count| 0..=count).collect();
        }
        let bounds = |count: usize| {
            let low = count.min(least.saturating_sub(num_live));
            let high = count.min(most.saturating_sub(num_live));
            low..=high
        };
        counts.into_iter().flat_map(bounds).collect()
    }

    /// Bounds on the live paths that a token total pays for.
    fn payable(&self, state: &State, round: &Round) -> (usize, usize) {
        let in_spite = (self.config.budget.min_width as usize)
            .saturating_sub(self.count(&state.leaves))
            .min(round.missing);
        let (least, most) = match self.config.budget.total {
            Total::Trajectories => return (usize::MAX, usize::MAX),
            Total::UniqueTokens => self.payable_unique(state, round),
            Total::PublishedTokens => self.payable_published(state, round),
        };
        (least.max(in_spite), most.max(in_spite))
    }

    /// A fork costs a segment at least and a whole completion at most.
    fn payable_unique(&self, state: &State, round: &Round) -> (usize, usize) {
        let ends = self.ends(state, &round.live);
        let used: usize = (0..state.known).map(|p| (ends[p] - self.base(p)) as usize).sum();
        let rest = (self.config.budget.max_tokens as usize).saturating_sub(used);
        let longest = (self.max_len() - self.tree.prompt_len) as usize;
        let pays_for_all = rest >= longest * round.missing;
        let least = if pays_for_all { usize::MAX } else { 0 };
        (least, round.live.len() + rest / self.config.segment_len as usize)
    }

    /// `floor((max_tokens - used) / (mean length + segment_len))` more leaves, where `used` counts
    /// the completions of the leaves, and perhaps those of the live paths.
    fn payable_published(&self, state: &State, round: &Round) -> (usize, usize) {
        let completion = |len: u32| f64::from(len - self.tree.prompt_len);
        let finished: Vec<f64> =
            state.leaves.iter().map(|leaf| completion(self.path(leaf.0).len())).collect();
        let live: Vec<f64> = round.live.iter().map(|live| completion(live.end)).collect();
        let mean = |lens: &[f64]| lens.iter().sum::<f64>() / lens.len().max(1) as f64;
        let by_leaves: f64 = finished.iter().sum();
        let mut values = Vec::new();
        for used in [by_leaves, by_leaves + live.iter().sum::<f64>()] {
            let lens = if live.is_empty() { &finished } else { &live };
            for length in [mean(lens), mean(lens) + f64::from(self.config.segment_len)] {
                let rest = (f64::from(self.config.budget.max_tokens) - used).max(0.0);
                values.push((rest / length.max(1.0)).floor() as usize);
            }
        }
        (values.iter().copied().min().unwrap_or(0), values.into_iter().max().unwrap_or(0))
    }

    /// The lengths that the known paths have at the end of the round.
    fn ends(&self, state: &State, live: &[Live]) -> Vec<u32> {
        let mut ends: Vec<u32> = (0..state.known).map(|p| self.path(p).len()).collect();
        for live in live {
            ends[live.path] = live.end;
        }
        ends
    }

    /// Leaves that the live paths cannot become any more, by the least and the greatest factor.
    fn shortfalls(&self, round: &Round) -> Vec<usize> {
        let potential = |factor: usize| {
            let leaves = |live: &Live| {
                let left =
                    self.config.max_depth.saturating_sub(self.path(live.path).depth(live.end));
                factor.saturating_pow(left)
            };
            round.live.iter().map(leaves).fold(0, usize::saturating_add)
        };
        self.factors().map(|factor| round.missing.saturating_sub(potential(factor))).collect()
    }

    /// Numbers of restarts that the rules may ask for at the end of this round.
    pub(super) fn refills(&self, state: &State, round: &Round) -> BTreeSet<usize> {
        let may_refill = round.live.is_empty() || self.is_early();
        if self.config.fallback.from == FallbackFrom::Nothing || !may_refill {
            return [0].into();
        }
        let caps = self.restart_caps(state, self.divergences());
        let counts: BTreeSet<usize> = self
            .shortfalls(round)
            .into_iter()
            .flat_map(|missing| caps.iter().map(move |&cap| missing.min(cap)))
            .collect();
        if round.live.is_empty() {
            let most = counts.last().copied().unwrap_or(0);
            let counts = self.limit(counts, self.payable(state, round), 0);
            let ends = |&count: &usize| count > 0 || most == 0 || !self.is_opportunistic();
            return counts.into_iter().filter(ends).collect();
        }
        // Less room than this may be left; `refill_fits` says how much.
        (0..=counts.last().copied().unwrap_or(0)).collect()
    }

    /// Whether an early refill of this size fits: it happens exactly when the live paths cannot
    /// become all missing leaves any more and the branches leave room.
    pub(super) fn refill_fits(
        &self,
        state: &State,
        round: &Round,
        branches: usize,
        restarts: usize,
    ) -> bool {
        if !self.is_early() || self.config.fallback.from == FallbackFrom::Nothing {
            return restarts == 0;
        }
        let room = round.missing.saturating_sub(round.live.len() + branches);
        let caps = self.restart_caps(state, self.divergences());
        let may_be_fewer =
            self.config.budget.total != Total::Trajectories || self.is_opportunistic();
        self.shortfalls(round).into_iter().any(|shortfall| {
            caps.iter().any(|&cap| {
                let most = shortfall.min(cap).min(room);
                restarts == most || (may_be_fewer && restarts < most)
            })
        })
    }

    /// Counts what bound the branches of a round.
    pub(super) fn tally_branches(&self, round: &Round, branches: usize, tally: &mut Tally) {
        let num_live = round.live.len();
        let by_factor = |factor: usize, finished: usize| {
            (factor * (num_live + finished)).min(round.missing).max(num_live) - num_live
        };
        let least = self.config.branch_factor as usize;
        let is_share = self.num_token_forks(round).is_none();
        let is_off = self.config.budget.transfer == Transfer::Off;
        let plain = by_factor(least, if is_off { 0 } else { round.num_finished });
        let is_free = self.config.budget.total == Total::Trajectories && !self.is_opportunistic();
        tally.count_if(is_share && is_free && branches > plain, "drawn_factors");
        let bound = is_share && !is_free && branches < plain && !self.is_opportunistic();
        tally.count_if(bound, "token_totals_that_bind");
        let lost = is_off && is_share && branches < by_factor(least, round.num_finished);
        tally.count_if(lost, "forks_lost_without_transfer");
        let by = self.config.branch.by;
        tally.count_if(branches > 0, &format!("branch_{by:?}"));
        let is_weighted = is_share && by != BranchBy::Even;
        tally.count_if(is_weighted && num_live > 1 && branches > 0, "weighted_splits");
    }
}
