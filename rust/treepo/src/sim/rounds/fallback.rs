//! Where restarts come from and where they are cut.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{Replay, State};
use crate::error::Result;
use crate::forest::{FinishReason, ForkOrigin};
use crate::search::{Alignment, FallbackAt, FallbackFrom};

impl Replay<'_> {
    /// The leaves that a restart may come from.
    fn candidates(&self, state: &State) -> Vec<usize> {
        let may = |p: usize| match (self.config.fallback.from, self.path(p).finish) {
            (FallbackFrom::Nothing, _) | (_, None) => false,
            (FallbackFrom::Answered, finish) => finish == Some(FinishReason::Stop),
            (_, Some(finish)) => finish.counts(),
        };
        state.leaves.iter().map(|leaf| leaf.0).filter(|&p| may(p)).collect()
    }

    /// Forks of one restart.
    fn copies(&self) -> usize {
        self.config.fallback.copies.unwrap_or(self.config.branch_factor) as usize
    }

    /// Restarts that may be made at once: all candidates give `copies`. Without a candidate the
    /// tree starts at the prompt again, as it began.
    pub(super) fn restart_caps(&self, state: &State) -> BTreeSet<usize> {
        match self.candidates(state).len() {
            0 => self.divergences().collect(),
            n => [n * self.copies()].into(),
        }
    }

    /// Restarts leave distinct candidates at cuts that the rule allows, in groups of `copies`.
    pub(super) fn check_restarts(&self, state: &mut State, forks: Range<usize>) -> Result<()> {
        let candidates = self.candidates(state);
        let prompt_len = self.tree.prompt_len;
        if candidates.is_empty() {
            state.tally.count("restarts_without_candidate");
            return self.check_forks(forks, ForkOrigin::Fallback, 0, prompt_len);
        }
        let mut options = Vec::new();
        for start in forks.clone().step_by(self.copies()) {
            let group = start..(start + self.copies()).min(forks.end);
            let (at, parent) = (self.path(start).at, self.path(start).parent);
            let parent = parent.unwrap_or(usize::MAX);
            self.check_forks(group, ForkOrigin::Fallback, parent, at)?;
            options.push(self.sources(&candidates, parent, at));
        }
        let what = format!("round {}: restarts {forks:?} from no distinct candidates", state.round);
        self.law(can_match(&options, state.known), "T2", &what)?;
        let (from, at) = (self.config.fallback.from, self.config.fallback.at);
        state.tally.count(&format!("fallback_{from:?}_{at:?}"));
        self.take_odds(&candidates, forks.clone(), &mut state.tally);
        let is_inside = forks.into_iter().any(|p| {
            let at = self.path(p).at;
            at != prompt_len && !self.tree.paths.iter().any(|path| path.marks.contains(&at))
        });
        state.tally.count_if(is_inside, "cuts_inside_segments");
        Ok(())
    }

    /// The candidates that a restart of `parent` at `at` can come from.
    fn sources(&self, candidates: &[usize], parent: usize, at: u32) -> Vec<usize> {
        let is_source = |&leaf: &usize| {
            self.cuts(leaf).contains(&at) && self.path(leaf).owner_before(at) == parent
        };
        candidates.iter().copied().filter(is_source).collect()
    }

    /// Where a restart may cut this leaf.
    pub(super) fn cuts(&self, leaf: usize) -> BTreeSet<u32> {
        self.unaligned_cuts(leaf).into_iter().map(|at| self.aligned(leaf, at)).collect()
    }

    /// Where a cut of this leaf moves.
    pub(super) fn aligned(&self, leaf: usize, at: u32) -> u32 {
        match self.config.fallback.alignment {
            Alignment::Token => at,
            Alignment::Segment => {
                self.boundaries(leaf).range(..=at).next_back().copied().unwrap_or(0)
            }
        }
    }

    /// The end of the prompt and each segment's end before the leaf's.
    fn boundaries(&self, leaf: usize) -> BTreeSet<u32> {
        let path = self.path(leaf);
        let marks = path.marks.iter().copied().filter(|&mark| mark < path.len());
        marks.chain([self.tree.prompt_len]).collect()
    }

    pub(super) fn unaligned_cuts(&self, leaf: usize) -> BTreeSet<u32> {
        let fallback = &self.config.fallback;
        let prompt_len = self.tree.prompt_len;
        let completion = self.path(leaf).len() - prompt_len;
        let window = fallback.window.unwrap_or(self.config.segment_len);
        let num_windows = completion.div_ceil(window);
        match fallback.at {
            FallbackAt::Boundary => self.boundaries(leaf),
            FallbackAt::Prompt => [prompt_len].into(),
            FallbackAt::Window => {
                let most = fallback.max_windows.unwrap_or(num_windows).min(num_windows);
                (1..=most).map(|k| prompt_len + (num_windows - k) * window).collect()
            }
            FallbackAt::UnsureBlock | FallbackAt::SureBlock => {
                (0..num_windows).map(|block| prompt_len + block * window).collect()
            }
            FallbackAt::LowestLogprob => {
                let tokens = &self.path(leaf).tokens;
                let logprob = |&at: &u32| tokens[at as usize].logprob;
                let positions = || prompt_len..prompt_len + completion;
                let lowest = positions().map(|at| logprob(&at)).fold(f32::MAX, f32::min);
                positions().filter(|at| logprob(at) <= lowest).collect()
            }
        }
    }
}

/// Whether every group can get a source of its own (Kuhn's algorithm).
fn can_match(options: &[Vec<usize>], num_sources: usize) -> bool {
    fn place(
        group: usize,
        options: &[Vec<usize>],
        taken: &mut [Option<usize>],
        seen: &mut [bool],
    ) -> bool {
        for &source in &options[group] {
            if std::mem::replace(&mut seen[source], true) {
                continue;
            }
            let is_free = taken[source].is_none_or(|other| place(other, options, taken, seen));
            if is_free {
                taken[source] = Some(group);
                return true;
            }
        }
        false
    }
    let mut taken = vec![None; num_sources];
    (0..options.len()).all(|group| place(group, options, &mut taken, &mut vec![false; num_sources]))
}
