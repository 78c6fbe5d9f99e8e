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
mod odds;
mod prune;
mod tally;
#[cfg(test)]
mod tests;
mod text;
mod weights;

use std::ops::Range;

pub use births::{Birth, Births};
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
    births: &Births,
) -> Result<Tally> {
    let mut tally = Tally::default();
    for (t, tree) in TreeView::all(forest)?.iter().enumerate() {
        let (births, place) = (births.of_tree(t), format!("tree {t}"));
        let replay = Replay { config, caller, tree, births, place };
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
    births: &'a [Birth],
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
        let first = self.births.first().map_or(1, |birth| birth.num_paths);
        self.check_forks(1..first, ForkOrigin::Initial, 0, self.tree.prompt_len)?;
        let mut state = State { known: first, ..State::default() };
        self.check_divergence(first, &mut state.tally)?;
        state.running.extend((0..first).map(|path| Running { path, start: self.tree.prompt_len }));
        loop {
            state.round += 1;
            let round = self.end_round(&mut state)?;
            let forks = self.forks(&state, &round)?;
            if round.live.is_empty() && forks.branches.is_empty() && forks.restarts.is_empty() {
                self.check_end(&mut state, &round)?;
                return Ok(state.tally);
            }
            self.fork(&mut state, &round, &forks)?;
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

    /// The forks that follow a round, whose numbers are right.
    fn forks(&self, state: &State, round: &Round) -> Result<Forks> {
        let num_tokens = self.num_tokens(state, round);
        let birth = self.births.iter().skip(1).find(|birth| birth.num_tokens == num_tokens);
        let new = state.known..birth.map_or(state.known, |birth| birth.num_paths);
        let is = |p: usize, origin| self.path(p).origin == Some(origin);
        let run = |start, origin| (start..new.end).take_while(|&p| is(p, origin)).count();
        // Branches come before restarts or behind them.
        let (branches, restarts) = if run(new.start, ForkOrigin::Branch) > 0 {
            let middle = new.start + run(new.start, ForkOrigin::Branch);
            (new.start..middle, middle..new.end)
        } else {
            let middle = new.start + run(new.start, ForkOrigin::Fallback);
            (middle..new.end, new.start..middle)
        };
        let fits = branches.clone().all(|p| self.is_branch(p, round))
            && restarts.clone().all(|p| is(p, ForkOrigin::Fallback))
            && self.branch_counts(state, round, restarts.len()).contains(&branches.len())
            && self.refill_fits(state, round, branches.len(), restarts.len());
        let what = format!(
            "round {}: {branches:?} are branches, {restarts:?} restarts of {} live paths and {} \
             leaves with {} leaves missing; {:?} branches are allowed",
            state.round,
            round.live.len(),
            round.finished.len(),
            round.missing,
            self.branch_counts(state, round, restarts.len()),
        );
        self.law(fits, "T2", &what)?;
        Ok(Forks { branches, restarts })
    }

    /// Sampled tokens at the end of a round.
    fn num_tokens(&self, state: &State, round: &Round) -> usize {
        let ends = self.ends(state, &round.live);
        (0..state.known).map(|p| (ends[p] - self.base(p)) as usize).sum()
    }

    /// The lengths that the known paths have at the end of the round.
    fn ends(&self, state: &State, live: &[Ended]) -> Vec<u32> {
        let mut ends: Vec<u32> = (0..state.known).map(|p| self.path(p).len()).collect();
        for live in live {
            ends[live.path] = live.end;
        }
        ends
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

    fn check_end(&self, state: &mut State, round: &Round) -> Result<()> {
        self.check_thresholds(state)?;
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
        self.tally_leaves(state);
        Ok(())
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
