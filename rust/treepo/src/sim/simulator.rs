//! Runs a scenario and holds it against the laws.

use std::collections::{BTreeMap, BTreeSet};

use super::rounds::{Births, Tally};
use super::view::TreeView;
use super::{FakeModel, PlanArrays, Scenario, oracle, rounds};
use crate::error::{Result, law};
use crate::forest::{FinishReason, Forest, ForkOrigin, TokenKind};
use crate::ids::{PathId, TreeId};
use crate::schedule::{PlanSizes, Scheduler, Stats};
use crate::search::{Opportunistic, TokenTexts};

/// More steps than any scenario needs; a run that takes more does not end (law S1).
const MAX_STEPS: u32 = 50_000;

/// Moves to another process in one run at most: each loses all keys and values, so that a run of
/// nothing else would compute the same tokens for ever.
const MAX_MOVES: u32 = 6;

/// What a run left behind.
#[derive(Debug, Clone)]
pub struct Run {
    /// The finished forest, trees in order of arrival.
    pub forest: Forest,
    /// The scheduler's counters.
    pub stats: Stats,
    /// Every plan.
    pub plans: Vec<PlanArrays>,
    /// When paths were made.
    pub births: Births,
    /// What else happened.
    pub tally: Tally,
}

/// A run that goes on.
struct Machine<'a> {
    scenario: &'a Scenario,
    scheduler: Scheduler,
    model: FakeModel,
    arrays: PlanArrays,
    plans: Vec<PlanArrays>,
    step: u32,
    num_added: usize,
    /// The step in which each pending verdict is told.
    verdicts: BTreeMap<(TreeId, PathId), u32>,
    births: Births,
    num_moves: u32,
    tally: Tally,
}

impl Scenario {
    /// Runs the scenario with the laws checked after every call.
    ///
    /// # Errors
    /// `LawBroken`, or what the scheduler returns.
    pub fn run(&self) -> Result<Run> {
        Machine::new(self)?.run(None)
    }

    /// As [`Scenario::run`]; at every `every`-th step the scheduler is written to bytes and another
    /// one, with an empty cache, goes on from them.
    ///
    /// # Errors
    /// As [`Scenario::run`].
    pub fn run_with_snapshots(&self, every: u32) -> Result<Run> {
        Machine::new(self)?.run(Some(every))
    }

    /// Runs the scenario twice and holds it against oracle and rules, then once more through
    /// snapshots.
    ///
    /// # Errors
    /// As [`Scenario::run`].
    pub fn verify(&self) -> Result<Run> {
        let mut run = self.run()?;
        law(run.plans == self.run()?.plans, "S3", || "a second run has other plans".into())?;
        let is_replayable = self.search.opportunistic == Opportunistic::Off;
        if is_replayable {
            let (expected, births) = self.grow()?;
            oracle::check_same_trees(&run.forest, &expected)?;
            law(run.births == births.reversed(), "S4", || "paths are made in other rounds".into())?;
        }
        oracle::check_tokens(&run.forest, &self.rule, self.seed)?;
        run.tally.add(&rounds::check_rounds(&run.forest, &self.search, &self.caller, &run.births)?);
        check_counters(&run)?;
        if let Some(every) = self.snapshot_every {
            let other = self.run_with_snapshots(every)?;
            if is_replayable {
                oracle::check_same_trees(&other.forest, &run.forest)?;
            }
            run.tally.add(&other.tally);
        }
        run.tally.add_events("eos_first_tokens", count_first_eos(&run.forest)?);
        Ok(run)
    }

    /// Grows the trees without scheduler and memory and holds them against the rules alone.
    ///
    /// # Errors
    /// As [`Scenario::run`].
    pub fn verify_search(&self) -> Result<Tally> {
        let (forest, births) = self.grow()?;
        oracle::check_tokens(&forest, &self.rule, self.seed)?;
        rounds::check_rounds(&forest, &self.search, &self.caller, &births)
    }

    /// The trees as the oracle grows them, the last one first.
    fn grow(&self) -> Result<(Forest, Births)> {
        let mut prompts = self.prompts.clone();
        prompts.reverse();
        oracle::grow_with(&self.search, &self.rule, &self.caller, self.seed, &prompts)
    }

    fn check_limits(&self, sizes: PlanSizes) -> Result<()> {
        let rows = self.limits.max_num_seqs as usize;
        let fits = sizes.num_rows <= rows
            && sizes.num_samples <= rows
            && sizes.num_tokens <= self.limits.max_num_batched_tokens as usize;
        law(fits, "S2", || format!("a plan of {sizes:?}"))
    }
}

impl<'a> Machine<'a> {
    fn new(scenario: &'a Scenario) -> Result<Self> {
        let mut scheduler =
            Scheduler::new(scenario.search.clone(), scenario.limits, scenario.seed)?;
        scheduler.set_texts(TokenTexts::new(&scenario.caller.pieces))?;
        Ok(Self {
            scenario,
            model: empty_model(scenario),
            arrays: PlanArrays::new(&scheduler.capacity()),
            scheduler,
            plans: Vec::new(),
            step: 0,
            num_added: 0,
            verdicts: BTreeMap::new(),
            births: Births::default(),
            num_moves: 0,
            tally: Tally::default(),
        })
    }

    fn run(mut self, snapshot_every: Option<u32>) -> Result<Run> {
        while self.step()? {
            law(self.step < MAX_STEPS, "S1", || format!("{MAX_STEPS} steps and no end"))?;
            if self.num_moves < MAX_MOVES
                && snapshot_every.is_some_and(|every| self.step.is_multiple_of(every))
            {
                self.move_to_another_process()?;
            }
        }
        law(!self.has_more_trees() && self.scheduler.is_done(), "S1", || {
            "an empty plan before the end".into()
        })?;
        let stats = self.scheduler.stats();
        let (plans, births, tally) = (self.plans, self.births, self.tally);
        Ok(Run { forest: self.scheduler.into_forest(), stats, plans, births, tally })
    }

    /// One step; whether there is another.
    fn step(&mut self) -> Result<bool> {
        self.add_trees()?;
        self.tell_verdicts()?;
        let sizes = self.scheduler.plan_step(&mut self.arrays.buffers())?;
        self.scheduler.check()?;
        if sizes.num_rows == 0 {
            let verdicts_ended_all = self.scheduler.is_done() && self.has_more_trees();
            return Ok(verdicts_ended_all || self.skip_to_a_verdict());
        }
        self.scenario.check_limits(sizes)?;
        let plan = self.arrays.used(sizes);
        let tokens = self.model.run(&plan)?;
        self.plans.push(plan);
        self.scheduler.commit_step(&tokens)?;
        self.after_change()?;
        self.step += 1;
        Ok(true)
    }

    fn has_more_trees(&self) -> bool {
        self.num_added < self.scenario.prompts.len()
    }

    fn after_change(&mut self) -> Result<()> {
        self.scheduler.check()?;
        self.births.note(self.scheduler.forest());
        let pool = self.scheduler.memory().pool();
        self.model.poison(|block| pool.count(block) == 0);
        Ok(())
    }

    fn add_trees(&mut self) -> Result<()> {
        let scenario = self.scenario;
        while let Some((key, prompt)) = scenario.prompts.get(self.num_added) {
            let is_early = scenario.arrivals[self.num_added] > self.step;
            if is_early && !self.scheduler.is_done() {
                break;
            }
            self.scheduler.add_tree(*key, prompt)?;
            self.num_added += 1;
        }
        self.births.note(self.scheduler.forest());
        Ok(())
    }

    /// Tells the verdicts that are due and notes those that have become pending, until none is.
    fn tell_verdicts(&mut self) -> Result<()> {
        loop {
            let places: BTreeSet<_> = self.scheduler.ended_segments().collect();
            law(self.verdicts.keys().all(|place| places.contains(place)), "S4", || {
                "a path waits for its verdict no more".into()
            })?;
            for &(tree, path) in &places {
                let delay = self.scenario.caller.delay(&self.tokens(tree, path)?);
                self.verdicts.entry((tree, path)).or_insert(self.step + delay);
            }
            let is_due = |&(_, &step): &(&(TreeId, PathId), &u32)| step <= self.step;
            let Some((&(tree, path), _)) = self.verdicts.iter().rev().find(is_due) else {
                return Ok(());
            };
            self.verdicts.remove(&(tree, path));
            let tokens = self.tokens(tree, path)?;
            let ruling = self.scenario.caller.rule(&tokens);
            let is_late = self.scenario.caller.delay(&tokens) > 0;
            self.tally.add_events("late_verdicts", u64::from(is_late));
            self.scheduler.report(tree, path, ruling.into())?;
            self.after_change()?;
        }
    }

    /// Moves time to the next verdict; whether there is one.
    fn skip_to_a_verdict(&mut self) -> bool {
        let Some(&next) = self.verdicts.values().min() else { return false };
        self.tally.add_events("steps_that_only_wait_for_verdicts", 1);
        self.step = self.step.max(next);
        true
    }

    fn tokens(&self, tree: TreeId, path: PathId) -> Result<Vec<u32>> {
        self.scheduler.forest().tree(tree)?.tokens(path)
    }

    /// Goes on with what the bytes say; keys and values are computed again.
    fn move_to_another_process(&mut self) -> Result<()> {
        self.scheduler = Scheduler::from_bytes(&self.scheduler.to_bytes()?)?;
        self.scheduler.check()?;
        self.model = empty_model(self.scenario);
        self.arrays = PlanArrays::new(&self.scheduler.capacity());
        self.num_moves += 1;
        self.tally.add_events("snapshots", 1);
        Ok(())
    }
}

fn empty_model(scenario: &Scenario) -> FakeModel {
    let limits = scenario.limits;
    let rule = scenario.rule.clone();
    FakeModel::new(rule, limits.num_blocks, limits.block_size, limits.max_num_seqs)
}

/// Law S5: one decoded token a sampled one, each fed once unless memory was taken away.
fn check_counters(run: &Run) -> Result<()> {
    let stats = run.stats;
    let kinds = run.forest.columns().token_kind;
    let is_sampled = |kind: &u8| u64::from(*kind == TokenKind::Sampled as u8);
    let num_sampled: u64 = kinds.iter().map(is_sampled).sum();
    law(stats.decoded_tokens == num_sampled, "S5", || {
        format!("{} tokens decoded for {num_sampled} in the forest", stats.decoded_tokens)
    })?;
    // A caller may fork a leaf behind its last boundary, whose memory is gone.
    let origins = &run.forest.columns().path_origin;
    let is_by_caller = origins.contains(&(ForkOrigin::Caller as u8));
    let has_trimmed = stats.trimmed_blocks > 0 && is_by_caller;
    let has_lost = stats.evictions > 0 || stats.prunes > 0 || has_trimmed;
    law(stats.recomputed_tokens == 0 || has_lost, "S5", || {
        format!("{} tokens computed again, nothing evicted or pruned", stats.recomputed_tokens)
    })?;
    let fed_once = stats.fed_tokens - stats.recomputed_tokens - stats.refed_tokens;
    law(fed_once <= run.forest.num_tokens() as u64, "S5", || {
        format!("{fed_once} tokens fed once of {}", run.forest.num_tokens())
    })
}

/// Leaves whose last segment is one token, an end of sequence.
fn count_first_eos(forest: &Forest) -> Result<u64> {
    let trees = TreeView::all(forest)?;
    let paths = trees.iter().flat_map(|tree| &tree.paths);
    let is_first = |path: &&super::view::PathView| {
        let before = path.own_marks.iter().rev().nth(1).copied().unwrap_or(path.at);
        path.finish == Some(FinishReason::Stop) && path.len() - before == 1
    };
    Ok(paths.filter(is_first).count() as u64)
}
