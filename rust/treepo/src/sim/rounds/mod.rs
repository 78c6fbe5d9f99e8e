//! The search's rules, derived again from a finished forest without calling the search.
//!
//! A tree is replayed round by round from its marks: who was live, who finished and why, and
//! whether the forks that follow are those that the documented rules ask for (laws T1, T2, T5).
//! Where a rule draws a number, each number that it may draw is tried.

mod births;
mod branch;
mod budget;
mod fallback;
mod finish;
mod limits;
mod prune;
mod tally;
#[cfg(test)]
mod tests;
mod text;
mod weights;

use std::collections::BTreeSet;
use std::ops::Range;

pub use births::{Births, EarlyRestarts};
pub use tally::Tally;

use super::caller::{Caller, Ruling};
use super::view::{PathView, TreeView};
use crate::error::{Result, law};
use crate::forest::{FinishReason, Forest, ForkOrigin};
use crate::search::{
    FallbackFrom, Opportunistic, PrunedLeaves, Refill, SearchConfig, Total, Verdicts,
};
use prune::Look;

/// Checks every tree of a finished forest that nothing was aborted in; returns what happened.
///
/// # Errors
/// `LawBroken` with the tree, the round and the rule.
pub fn check_rounds(
    forest: &Forest,
    config: &SearchConfig,
    caller: &Caller,
    early: &EarlyRestarts,
) -> Result<Tally> {
    let mut tally = Tally::default();
    for (t, tree) in TreeView::all(forest)?.iter().enumerate() {
        let early = early.get(t).cloned().unwrap_or_default();
        let replay = Replay { config, caller, tree, early, place: format!("tree {t}") };
        replay.check_limits()?;
        replay.check_weights()?;
        tally.add(&replay.check_tree()?);
    }
    Ok(tally)
}

/// A tree and what its rules depend on.
struct Replay<'a> {
    config: &'a SearchConfig,
    caller: &'a Caller,
    tree: &'a TreeView,
    early: BTreeSet<usize>,
    place: String,
}

/// A path whose segment runs.
#[derive(Debug, Clone, Copy)]
struct Running {
    path: usize,
    start: u32,
}

/// A segment that a round has ended.
#[derive(Debug, Clone, Copy)]
struct Ended {
    path: usize,
    /// Where its segment began.
    start: u32,
    /// Where it ended.
    end: u32,
}

/// What is known of a tree between two rounds.
#[derive(Debug, Clone, Default)]
struct State {
    round: usize,
    /// Paths that have been made.
    known: usize,
    running: Vec<Running>,
    /// Leaves with the round that they ended in.
    leaves: Vec<(usize, usize)>,
    looks: Vec<Look>,
    tally: Tally,
}

/// The end of a round, before it forks.
#[derive(Debug, Clone, Default)]
struct Round {
    /// Of the paths that live on.
    live: Vec<Ended>,
    /// Of the paths that are leaves now and were not given up.
    finished: Vec<Ended>,
    /// Leaves of the round that count.
    num_counted: usize,
    /// Leaves that the tree misses.
    missing: usize,
}

/// The forks of a round.
#[derive(Debug, Clone, Default)]
struct Forks {
    branches: Range<usize>,
    restarts: Range<usize>,
}

impl Replay<'_> {
    fn law(&self, holds: bool, law_number: &'static str, what: &str) -> Result<()> {
        law(holds, law_number, || format!("{}: {what}", self.place))
    }

    fn path(&self, p: usize) -> &PathView {
        &self.tree.paths[p]
    }

    /// The leaves that count: the first `width - 1` pruned ones do not if they are replaced.
    fn count(&self, leaves: &[(usize, usize)]) -> usize {
        let is_pruned = |p: usize| self.path(p).finish == Some(FinishReason::Pruned);
        let pruned = leaves.iter().filter(|leaf| is_pruned(leaf.0)).count();
        let counted = match self.config.prune.leaves {
            PrunedLeaves::Count => pruned,
            PrunedLeaves::AreReplaced => pruned.saturating_sub(self.config.width as usize - 1),
        };
        leaves.len() - pruned + counted
    }

    /// T2: replays the rounds.
    fn check_tree(&self) -> Result<Tally> {
        let paths = &self.tree.paths;
        self.law(paths[0].origin == Some(ForkOrigin::Root), "T2", "origin of path 0")?;
        let is_initial = |path: &&PathView| path.origin == Some(ForkOrigin::Initial);
        let first = 1 + paths[1..].iter().take_while(is_initial).count();
        self.check_forks(1..first, ForkOrigin::Initial, 0, self.tree.prompt_len)?;
        let mut state = State { known: first, ..State::default() };
        self.check_divergence(first, &mut state.tally)?;
        state.running.extend((0..first).map(|path| Running { path, start: self.tree.prompt_len }));
        let mut state = self.replay(state)?;
        self.tally_leaves(&mut state);
        Ok(state.tally)
    }

    /// The rounds from here on, with each number of restarts that the rules may draw.
    fn replay(&self, mut state: State) -> Result<State> {
        loop {
            state.round += 1;
            let round = self.end_round(&mut state)?;
            let mut options = self.options(&state, &round)?;
            let is_end = |forks: &Forks| {
                round.live.is_empty() && forks.restarts.is_empty() && forks.branches.is_empty()
            };
            let last = options.pop().unwrap_or_default();
            for forks in options {
                let mut other = state.clone();
                let done = if is_end(&forks) {
                    self.check_end(other, &round)
                } else {
                    self.fork(&mut other, &round, &forks).and_then(|()| self.replay(other))
                };
                if done.is_ok() {
                    return done;
                }
            }
            if is_end(&last) {
                return self.check_end(state, &round);
            }
            self.fork(&mut state, &round, &last)?;
        }
    }

    /// Ends the segment of each running path.
    fn end_round(&self, state: &mut State) -> Result<Round> {
        let mut round = Round::default();
        let before = self.count(&state.leaves);
        for Running { path, start } in std::mem::take(&mut state.running) {
            let end = self.segment_end(path, start)?;
            self.check_segment(path, start..end, state)?;
            if end == self.path(path).len() {
                state.leaves.push((path, state.round));
                if self.path(path).finish != Some(FinishReason::Pruned) {
                    round.finished.push(Ended { path, start, end });
                }
            } else {
                round.live.push(Ended { path, start, end });
            }
        }
        let counted = self.count(&state.leaves);
        round.num_counted = counted - before;
        round.missing = (self.config.width as usize).saturating_sub(counted);
        Ok(round)
    }

    /// Every way to read the forks that follow, in which their numbers are right.
    fn options(&self, state: &State, round: &Round) -> Result<Vec<Forks>> {
        let known = state.known;
        let mut options = Vec::new();
        for restarts in self.refills(state, round) {
            // Branches come before restarts or behind them.
            for start in BTreeSet::from([known, known + restarts]) {
                for count in self.branch_counts(state, round, restarts) {
                    let branches = start..start + count;
                    let first = if start == known { branches.end } else { known };
                    let forks = Forks { branches, restarts: first..first + restarts };
                    if self.fits(state, round, &forks) {
                        options.push(forks);
                    }
                }
            }
        }
        self.law(!options.is_empty(), "T2", &self.describe(state, round))?;
        Ok(options)
    }

    fn describe(&self, state: &State, round: &Round) -> String {
        format!(
            "round {}: {} live paths, {} finished, {} missing leaves; {:?} branches and {:?} \
             restarts are allowed from path {} of {} on",
            state.round,
            round.live.len(),
            round.finished.len(),
            round.missing,
            self.branch_counts(state, round, 0),
            self.refills(state, round),
            state.known,
            self.tree.paths.len(),
        )
    }

    /// Whether these forks leave the right paths and their numbers are right.
    fn fits(&self, state: &State, round: &Round, forks: &Forks) -> bool {
        let (branches, restarts) = (forks.branches.clone(), forks.restarts.clone());
        let is_early = !round.live.is_empty();
        branches.end.max(restarts.end) <= self.tree.paths.len()
            && branches.clone().all(|p| self.is_branch(p, round))
            && restarts.clone().all(|p| self.is_restart(p, is_early))
            && self.refill_fits(state, round, branches.len(), restarts.len())
    }

    fn is_restart(&self, p: usize, is_early: bool) -> bool {
        let is_fallback = self.path(p).origin == Some(ForkOrigin::Fallback);
        is_fallback && self.early.contains(&p) == is_early
    }

    /// Checks the forks themselves and starts the next round.
    fn fork(&self, state: &mut State, round: &Round, forks: &Forks) -> Result<()> {
        self.check_branches(round, forks.branches.clone(), state)?;
        if !forks.restarts.is_empty() {
            self.check_restarts(state, forks.restarts.clone())?;
            let is_early = !round.live.is_empty();
            state.tally.count_if(is_early, "early_refills");
        }
        state.running.extend(round.live.iter().map(|l| Running { path: l.path, start: l.end }));
        let new = state.known..state.known + forks.branches.len() + forks.restarts.len();
        state.running.extend(new.clone().map(|path| Running { path, start: self.path(path).at }));
        state.known = new.end;
        Ok(())
    }

    fn check_end(&self, mut state: State, round: &Round) -> Result<State> {
        self.check_thresholds(&state)?;
        self.law(state.known == self.tree.paths.len(), "T2", "paths that no round made")?;
        let (width, counted) = (self.config.width as usize, self.count(&state.leaves));
        self.law(counted <= width, "T2", "too many leaves")?;
        let least = match (self.config.fallback.from, self.config.budget.total) {
            (FallbackFrom::Nothing, _) => 0,
            (_, Total::Trajectories) => width,
            _ => width.min(self.config.budget.min_width as usize),
        };
        self.law(counted >= least, "T2", &format!("{counted} of {width} leaves"))?;
        let ends_short = round.missing > 0 && least > 0;
        state.tally.count_if(ends_short, "token_totals_that_end_a_tree");
        Ok(state)
    }

    /// Each of these paths leaves `parent` at `at` for this reason.
    fn check_forks(
        &self,
        paths: Range<usize>,
        origin: ForkOrigin,
        parent: usize,
        at: u32,
    ) -> Result<()> {
        for p in paths {
            let path = self.path(p);
            let fits = path.origin == Some(origin) && path.parent == Some(parent) && path.at == at;
            self.law(fits, "T2", &format!("path {p} is no {origin:?} fork of {parent} at {at}"))?;
        }
        Ok(())
    }

    /// The ruling on the path when it has this length, if the caller judges.
    fn ruling(&self, p: usize, len: u32) -> Option<Ruling> {
        let judge = self.caller.judge.as_ref();
        let judge = judge.filter(|_| self.config.verdicts == Verdicts::Segments)?;
        Some(judge.rule(&self.path(p).ids(len)))
    }

    fn is_early(&self) -> bool {
        self.config.fallback.refill == Refill::Early
    }

    fn is_opportunistic(&self) -> bool {
        self.config.opportunistic == Opportunistic::StepTokens
    }
}
