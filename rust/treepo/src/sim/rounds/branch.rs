//! How the forks of a round are split over its live paths.

use std::ops::Range;

use super::{Ended, Replay, Round, State};
use crate::error::Result;
use crate::forest::ForkOrigin;
use crate::search::{BranchBy, Prefer, Remainder, TemperatureSchedule};

/// What float rounding may move a share by.
const TOLERANCE: f64 = 5e-3;

impl Replay<'_> {
    pub(super) fn is_token_rule(&self) -> bool {
        use BranchBy::{TokenEntropy, TokenEntropyAbove, TokenSurprisal};
        matches!(self.config.branch.by, TokenSurprisal | TokenEntropy | TokenEntropyAbove)
    }

    /// Whether a path branches off a segment of this round.
    pub(super) fn is_branch(&self, p: usize, round: &Round) -> bool {
        let at = self.path(p).at;
        let leaves = |ended: &Ended, is_inside: bool| {
            is_inside && self.path(p).parent == Some(self.path(ended.path).owner_before(at))
        };
        let is_of = |ended: &Ended| {
            if self.is_token_rule() {
                leaves(ended, (ended.start..ended.end).contains(&at))
            } else {
                leaves(ended, at == ended.end)
            }
        };
        let mut ended = round.live.iter().chain(&round.finished);
        self.path(p).origin == Some(ForkOrigin::Branch) && ended.any(is_of)
    }

    /// The branches of a round, whose number is right, leave the right places.
    pub(super) fn check_branches(
        &self,
        round: &Round,
        forks: Range<usize>,
        state: &mut State,
    ) -> Result<()> {
        self.tally_branches(round, forks.len(), &mut state.tally);
        if self.is_token_rule() {
            return self.check_token_forks(round, forks);
        }
        if round.live.is_empty() {
            return Ok(());
        }
        let (mut next, mut counts) = (forks.start, Vec::new());
        for live in &round.live {
            let is_own =
                |&q: &usize| self.path(q).at == live.end && self.path(q).parent == Some(live.path);
            let count = (next..forks.end).take_while(is_own).count();
            self.check_forks(next..next + count, ForkOrigin::Branch, live.path, live.end)?;
            next += count;
            counts.push(count);
        }
        self.law(next == forks.end, "T2", &format!("fork {next} leaves no live path in order"))?;
        let fits = match self.config.branch.by {
            BranchBy::Even => self.is_even(&counts),
            _ => self.readings(round).iter().any(|values| self.is_weighted(&counts, values)),
        };
        let what = format!("round {}: branches split {counts:?}", state.round);
        self.law(fits, "T2", &what)
    }

    /// Shares differ by one at most; the greater ones are neighbours, or it is the last that gets
    /// the whole remainder.
    pub(super) fn is_even(&self, counts: &[usize]) -> bool {
        let n = counts.len();
        let total = n + counts.iter().sum::<usize>();
        let (share, remainder) = (total / n - 1, total % n);
        match self.config.branch.remainder {
            Remainder::Last => {
                let (last, others) = (counts[n - 1], &counts[..n - 1]);
                last == share + remainder && others.iter().all(|&count| count == share)
            }
            Remainder::Drawn => (0..n).any(|first| {
                let extra = |i: usize| usize::from((i + n - first) % n < remainder);
                (0..n).all(|i| counts[i] == share + extra(i))
            }),
        }
    }

    /// What the live paths are weighted by. Where a path left another one within a segment, its
    /// last segment begins there or at the mark before.
    fn readings(&self, round: &Round) -> Vec<Vec<f64>> {
        let mark_before = |live: &Ended| {
            let marks = self.path(live.path).marks.iter().filter(|&&mark| mark < live.end);
            marks.max().copied().unwrap_or(self.tree.prompt_len)
        };
        let values = |start: &dyn Fn(&Ended) -> u32| {
            round.live.iter().map(|live| self.value(live, start(live))).collect()
        };
        vec![values(&|live| live.start), values(&mark_before)]
    }

    fn value(&self, live: &Ended, segment_start: u32) -> f64 {
        let path = self.path(live.path);
        let logprobs = |range: Range<u32>| -> Vec<f64> {
            let tokens = &path.tokens[range.start as usize..range.end as usize];
            tokens.iter().map(|token| f64::from(token.logprob)).collect()
        };
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (whole, segment) = (self.tree.prompt_len..live.end, segment_start..live.end);
        match self.config.branch.by {
            BranchBy::PathLogprob => logprobs(whole).iter().sum(),
            BranchBy::MeanLogprob => mean(&logprobs(whole)),
            BranchBy::SegmentLogprob => mean(&logprobs(segment)),
            BranchBy::SegmentEntropy => {
                let tokens = &path.tokens[segment.start as usize..segment.end as usize];
                let entropies = tokens.iter().map(|token| f64::from(token.entropy));
                mean(&entropies.collect::<Vec<_>>())
            }
            BranchBy::Score => self.score(live.path, live.end).map_or(0.0, f64::from),
            _ => 0.0,
        }
    }

    pub(super) fn temperature(&self) -> f64 {
        let branch = &self.config.branch;
        let (a, b) = (f64::from(branch.temperature), f64::from(branch.final_temperature));
        let progress = f64::from(self.config.progress);
        match branch.schedule {
            TemperatureSchedule::Constant => a,
            TemperatureSchedule::Linear => a + (b - a) * progress,
            TemperatureSchedule::Sinusoid => {
                let pi = std::f64::consts::PI;
                f64::midpoint(a, b) + (b - a) / 2.0 * (pi * progress - pi / 2.0).sin()
            }
        }
    }

    /// Each path keeps one; the rest goes by softmax, whole parts first, then by the largest
    /// remainders.
    pub(super) fn is_weighted(&self, counts: &[usize], values: &[f64]) -> bool {
        let sign = if self.config.branch.prefer == Prefer::Low { -1.0 } else { 1.0 };
        let logits: Vec<f64> = values.iter().map(|x| sign * x / self.temperature()).collect();
        let most = logits.iter().copied().fold(f64::MIN, f64::max);
        let weights: Vec<f64> = logits.iter().map(|logit| (logit - most).exp()).collect();
        let (sum, num_forks) = (weights.iter().sum::<f64>(), counts.iter().sum::<usize>());
        let quotas: Vec<f64> = weights.iter().map(|w| w / sum * num_forks as f64).collect();
        let is_close = |(&count, quota): (&usize, &f64)| {
            let excess = count as f64 - quota;
            excess > -1.0 - TOLERANCE && excess < 1.0 + TOLERANCE
        };
        // Largest remainders: no path is further above its quota than the whole of one more would
        // put a path that is below its own.
        let above = counts.iter().zip(&quotas).filter(|(c, _)| **c > 0);
        let above = above.map(|(&c, q)| c as f64 - q).fold(f64::MIN, f64::max);
        let below = counts.iter().zip(&quotas).map(|(&c, q)| c as f64 + 1.0 - q);
        let below = below.fold(f64::MAX, f64::min);
        counts.iter().zip(&quotas).all(is_close) && above <= below + TOLERANCE
    }

    /// The positions of a segment that a token rule forks, the first one first, with what decides
    /// between segments.
    fn token_positions(&self, ended: &Ended) -> Vec<(f32, u32)> {
        let branch = &self.config.branch;
        let tokens = &self.path(ended.path).tokens;
        let value = |at: u32| match branch.by {
            BranchBy::TokenSurprisal => -tokens[at as usize].logprob,
            _ => tokens[at as usize].entropy,
        };
        let positions = ended.start..ended.end;
        let mut positions: Vec<(f32, u32)> = positions.map(|at| (value(at), at)).collect();
        if branch.by == BranchBy::TokenEntropyAbove {
            positions.retain(|position| position.0 > branch.threshold);
            let ranked = (0..).zip(&mut positions);
            ranked.for_each(|(rank, position)| position.0 = -(rank as f32));
        } else {
            positions.sort_by(|a, b| b.0.total_cmp(&a.0));
        }
        positions.truncate(branch.num_positions as usize);
        positions
    }

    /// The places that a token rule forks, in order: larger values first, of equals the older path
    /// and the earlier position.
    fn token_forks(&self, round: &Round) -> Vec<(usize, u32)> {
        let mut places = Vec::new();
        for ended in round.live.iter().chain(&round.finished) {
            for (value, at) in self.token_positions(ended) {
                places.push((value, ended.path, at));
            }
        }
        places.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let copies = self.config.branch.copies as usize;
        let place = |(_, p, at): (f32, usize, u32)| (self.path(p).owner_before(at), at);
        places.into_iter().flat_map(|found| std::iter::repeat_n(place(found), copies)).collect()
    }

    /// Forks that a token rule makes without a limit; none for other rules.
    pub(super) fn num_token_forks(&self, round: &Round) -> Option<usize> {
        self.is_token_rule().then(|| self.token_forks(round).len())
    }

    /// The places with the largest values have their forks, and no other place has one.
    fn check_token_forks(&self, round: &Round, forks: Range<usize>) -> Result<()> {
        let mut wanted = self.token_forks(round);
        wanted.truncate(forks.len());
        wanted.sort_unstable();
        let place = |p: usize| (self.path(p).parent.unwrap_or(usize::MAX), self.path(p).at);
        let mut actual: Vec<_> = forks.map(place).collect();
        actual.sort_unstable();
        let what = format!("forks leave (path, position) {actual:?}, not {wanted:?}");
        self.law(actual == wanted, "T2", &what)
    }
}
