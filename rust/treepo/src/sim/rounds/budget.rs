//! How many forks a round has.
//!
//! With `A` live paths, `f` leaves of the round and `F` of the tree, a round ends with
//! `max(A, min(W - F, N f + N A))` live paths; a token total lowers `W`.

use std::collections::BTreeSet;

use super::{Ended, Replay, Round, State, Tally};
use crate::error::Result;
use crate::search::{BranchBy, FallbackFrom, Total, Transfer};

impl Replay<'_> {
    /// The paths that start at the prompt.
    pub(super) fn check_divergence(&self, first: usize, tally: &mut Tally) -> Result<()> {
        let range = self.divergences();
        let (least, most) = (*range.start(), *range.end());
        let fits = first <= most && (first >= least || !self.is_unlimited());
        let what = format!("initial divergence {first}, not in {least}..={most}");
        self.law(fits, "T2", &what)?;
        tally.count_if(first > least, "drawn_divergences");
        Ok(())
    }

    /// Whether nothing but the width limits the tree.
    fn is_unlimited(&self) -> bool {
        self.config.budget.total == Total::Trajectories && !self.is_opportunistic()
    }

    /// Paths that may start at the prompt together.
    pub(super) fn divergences(&self) -> std::ops::RangeInclusive<usize> {
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

    /// Finished paths that pass their forks on.
    fn num_transfers(&self, round: &Round) -> usize {
        if self.config.budget.transfer == Transfer::Off { 0 } else { round.num_counted }
    }

    /// Numbers of branches that the rules allow beside `restarts` restarts of the same round.
    pub(super) fn branch_counts(
        &self,
        state: &State,
        round: &Round,
        restarts: usize,
    ) -> BTreeSet<usize> {
        let num_live = round.live.len();
        let mut counts = BTreeSet::new();
        for room in self.rooms(state, round) {
            for room in [room, room.saturating_sub(restarts)] {
                if let Some(wanted) = self.num_token_forks(round) {
                    counts.insert(wanted.min(room.saturating_sub(num_live)));
                    continue;
                }
                for factor in self.factors() {
                    let wanted = factor * (num_live + self.num_transfers(round));
                    counts.insert(wanted.min(room).max(num_live) - num_live);
                }
            }
        }
        if num_live == 0 && (restarts > 0 || self.num_token_forks(round).is_none()) {
            return [0].into();
        }
        if self.is_opportunistic() {
            return counts.into_iter().flat_map(|count| 0..=count).collect();
        }
        counts
    }

    /// Leaves that the tree may get besides those that it has, by every reading of its total.
    fn rooms(&self, state: &State, round: &Round) -> BTreeSet<usize> {
        let budget = &self.config.budget;
        let payable = match budget.total {
            Total::Trajectories => return [round.missing].into(),
            Total::UniqueTokens => [self.payable_unique(state, round)].into(),
            Total::PublishedTokens => self.payable_published(state, round),
        };
        let in_spite = (budget.min_width as usize).saturating_sub(self.count(&state.leaves));
        let within = |room: usize| room.max(in_spite).min(round.missing);
        payable.into_iter().map(within).collect()
    }

    /// `A + floor((max_tokens - used - A l) / l)`: the live paths and what the rest pays a segment
    /// for.
    fn payable_unique(&self, state: &State, round: &Round) -> usize {
        let used = self.num_tokens(state, round);
        let (num_live, segment_len) = (round.live.len(), self.config.segment_len as usize);
        let reserved = used + num_live * segment_len;
        num_live + (self.config.budget.max_tokens as usize).saturating_sub(reserved) / segment_len
    }

    /// `floor((max_tokens - used) / (mean live completion + l))`, where `used` counts the whole
    /// completions of leaves. Where no path lives, the mean of the leaves takes the divisor's place, with a
    /// segment or without.
    fn payable_published(&self, state: &State, round: &Round) -> BTreeSet<usize> {
        let completion = |len: u32| f64::from(len - self.tree.prompt_len);
        let ends = self.ends(state, &round.live);
        let all: f64 = ends.iter().map(|&end| completion(end)).sum();
        let live: f64 = round.live.iter().map(|live| completion(live.end)).sum();
        let used = all - live;
        let rest = (f64::from(self.config.budget.max_tokens) - used).max(0.0);
        let lens: Vec<f64> = match round.live.as_slice() {
            [] => ends.iter().map(|&end| completion(end)).collect(),
            live => live.iter().map(|live| completion(live.end)).collect(),
        };
        let mean = lens.iter().sum::<f64>() / lens.len() as f64;
        let segment_len = f64::from(self.config.segment_len);
        let divisors = if round.live.is_empty() { vec![mean] } else { vec![mean + segment_len] };
        divisors.into_iter().map(|divisor| (rest / divisor + 1e-9).floor() as usize).collect()
    }

    /// Leaves that the live paths cannot become any more, by each factor that a round may have.
    fn shortfalls(&self, state: &State, round: &Round) -> BTreeSet<usize> {
        let potential = |factor: usize| {
            let leaves = |live: &Ended| {
                let depth = self.path(live.path).depth(live.end);
                let by_length = (self.max_len() - live.end).div_ceil(self.config.segment_len);
                factor.saturating_pow(self.config.max_depth.saturating_sub(depth).min(by_length))
            };
            round.live.iter().map(leaves).fold(0, usize::saturating_add)
        };
        let branch = &self.config.branch;
        let by_token = 1 + (branch.num_positions * branch.copies) as usize;
        let factor = if self.is_token_rule() { Some(by_token) } else { self.factors().max() };
        let potentials: Vec<usize> = factor.into_iter().map(potential).collect();
        let rooms = self.rooms(state, round).into_iter();
        rooms.flat_map(|room| potentials.iter().map(move |p| room.saturating_sub(*p))).collect()
    }

    /// Whether this many restarts go with this many branches. An early refill happens exactly when
    /// the live paths cannot become all missing leaves any more and the branches leave room; a late
    /// one, when no path lives and no token is sampled anew.
    pub(super) fn refill_fits(
        &self,
        state: &State,
        round: &Round,
        branches: usize,
        restarts: usize,
    ) -> bool {
        if self.config.fallback.from == FallbackFrom::Nothing {
            return restarts == 0;
        }
        let room = if round.live.is_empty() {
            if branches > 0 { 0 } else { usize::MAX }
        } else if self.is_early() {
            round.missing.saturating_sub(round.live.len() + branches)
        } else {
            0
        };
        let caps = self.restart_caps(state);
        let must_restart = round.live.is_empty() && branches == 0;
        let may_be_fewer = self.is_opportunistic() && (restarts > 0 || !must_restart);
        self.shortfalls(state, round).into_iter().any(|shortfall| {
            caps.iter().any(|&cap| {
                let most = shortfall.min(cap).min(room);
                restarts == most || (may_be_fewer && restarts < most)
            })
        })
    }

    /// Counts what bound the branches of a round.
    pub(super) fn tally_branches(&self, round: &Round, branches: usize, tally: &mut Tally) {
        let num_live = round.live.len();
        let plain = |finished: usize| {
            let wanted = self.config.branch_factor as usize * (num_live + finished);
            wanted.min(round.missing).max(num_live) - num_live
        };
        let (is_share, is_free) = (!self.is_token_rule(), self.is_unlimited());
        let least = plain(self.num_transfers(round));
        tally.count_if(is_share && is_free && branches > least, "drawn_factors");
        let is_bound = is_share && !self.is_opportunistic() && branches < least;
        tally.count_if(is_bound && !is_free, "token_totals_that_bind");
        let is_lost = num_live > 0 && is_share && is_free && branches < plain(round.num_counted);
        tally.count_if(is_lost, "forks_lost_without_transfer");
        let by = self.config.branch.by;
        tally.count_if(branches > 0, &format!("branch_{by:?}"));
        let is_weighted = is_share && by != BranchBy::Even;
        tally.count_if(is_weighted && num_live > 1 && branches > 0, "weighted_splits");
        tally.count_if(num_live == 0 && branches > 0, "tokens_of_leaves_sampled_anew");
    }
}
