//! Runs a scenario and holds it against the laws.

use std::fmt;

use super::{FakeModel, PlanArrays, Scenario, oracle, rounds};
use crate::error::{Result, law};
use crate::forest::{Forest, TokenKind};
use crate::ids::PathId;
use crate::schedule::{PlanSizes, Scheduler, Stats};

/// More steps than any scenario needs; a run that takes more does not end (law S1).
const MAX_STEPS: usize = 50_000;

/// What a run left behind.
#[derive(Debug, Clone)]
pub struct Run {
    /// The finished forest, trees in order of arrival.
    pub forest: Forest,
    /// The scheduler's counters.
    pub stats: Stats,
    /// Every plan.
    pub plans: Vec<PlanArrays>,
}

/// How often what happened, over many runs.
#[derive(Debug, Clone, Default)]
pub struct Report {
    num_runs: u64,
    events: Vec<(&'static str, u64)>,
}

impl Report {
    /// Adds a run.
    pub fn add(&mut self, run: &Run) {
        let mut events = run.stats.entries();
        events.push(("eos_first_tokens", count_first_eos(&run.forest)));
        self.events.resize(events.len(), ("", 0));
        for ((name, sum), (event, count)) in self.events.iter_mut().zip(events) {
            (*name, *sum) = (event, *sum + count);
        }
        self.num_runs += 1;
    }

    /// Counter names and sums.
    pub fn events(&self) -> &[(&'static str, u64)] {
        &self.events
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} runs", self.num_runs)?;
        self.events.iter().try_for_each(|(name, sum)| writeln!(f, "{sum:>10}  {name}"))
    }
}

impl Scenario {
    /// Runs the scenario with the laws checked after every call.
    ///
    /// # Errors
    /// `LawBroken`, or what the scheduler returns.
    pub fn run(&self) -> Result<Run> {
        let limits = self.limits;
        let mut scheduler = Scheduler::new(self.search.clone(), limits, self.seed)?;
        let (rule, rows) = (self.rule.clone(), limits.max_num_seqs);
        let mut model = FakeModel::new(rule, limits.num_blocks, limits.block_size, rows);
        let mut arrays = PlanArrays::new(&scheduler.capacity());
        let mut plans = Vec::new();
        let mut num_added = 0;
        loop {
            self.add_trees(&mut scheduler, &mut num_added, plans.len())?;
            let sizes = scheduler.plan_step(&mut arrays.buffers())?;
            scheduler.check()?;
            if sizes.num_rows == 0 {
                break;
            }
            self.check_limits(sizes)?;
            let plan = arrays.used(sizes);
            let tokens = model.run(&plan)?;
            plans.push(plan);
            scheduler.commit_step(&tokens)?;
            scheduler.check()?;
            model.poison(|block| scheduler.memory().pool().count(block) == 0);
            law(plans.len() < MAX_STEPS, "S1", || format!("{MAX_STEPS} steps and no end"))?;
        }
        law(num_added == self.prompts.len(), "S1", || "an empty plan before the end".into())?;
        let stats = scheduler.stats();
        Ok(Run { forest: scheduler.into_forest(), stats, plans })
    }

    /// Runs the scenario twice and holds it against oracle and rules.
    ///
    /// # Errors
    /// As [`Scenario::run`].
    pub fn verify(&self) -> Result<Run> {
        let run = self.run()?;
        law(run.plans == self.run()?.plans, "S3", || "a second run has other plans".into())?;
        let mut prompts = self.prompts.clone();
        prompts.reverse();
        let expected = oracle::grow(&self.search, &self.rule, self.seed, &prompts)?;
        oracle::check_same_trees(&run.forest, &expected)?;
        oracle::check_tokens(&run.forest, &self.rule, self.seed)?;
        rounds::check_rounds(&run.forest, &self.search)?;
        check_counters(&run)?;
        Ok(run)
    }

    fn add_trees(&self, scheduler: &mut Scheduler, added: &mut usize, step: usize) -> Result<()> {
        while let Some((key, prompt)) = self.prompts.get(*added) {
            if self.arrivals[*added] as usize > step && !scheduler.is_done() {
                break;
            }
            scheduler.add_tree(*key, prompt)?;
            *added += 1;
        }
        Ok(())
    }

    fn check_limits(&self, sizes: PlanSizes) -> Result<()> {
        let rows = self.limits.max_num_seqs as usize;
        let fits = sizes.num_rows <= rows
            && sizes.num_samples <= rows
            && sizes.num_tokens <= self.limits.max_num_batched_tokens as usize;
        law(fits, "S2", || format!("a plan of {sizes:?}"))
    }
}

/// Law S5: one decoded token a sampled one, each fed once unless memory was taken away.
fn check_counters(run: &Run) -> Result<()> {
    let stats = run.stats;
    let count = |tree: &crate::Tree| {
        let paths = (0..tree.paths().len() as u32).map(PathId);
        let kinds = paths.flat_map(|path| tree.own_kinds(path));
        kinds.filter(|kind| *kind == TokenKind::Sampled).count() as u64
    };
    let num_sampled: u64 = run.forest.trees().iter().map(count).sum();
    law(stats.decoded_tokens == num_sampled, "S5", || {
        format!("{} tokens decoded for {num_sampled} in the forest", stats.decoded_tokens)
    })?;
    let has_lost = stats.evictions > 0;
    law(stats.recomputed_tokens == 0 || has_lost, "S5", || {
        format!("{} tokens computed again, nothing evicted", stats.recomputed_tokens)
    })?;
    let fed_once = stats.fed_tokens - stats.recomputed_tokens - stats.refed_tokens;
    law(fed_once <= run.forest.num_tokens() as u64, "S5", || {
        format!("{fed_once} tokens fed once of {}", run.forest.num_tokens())
    })
}

/// Leaves whose last segment is one token, an end of sequence.
fn count_first_eos(forest: &Forest) -> u64 {
    let is_first = |tree: &crate::Tree, id: PathId, path: &crate::Path| {
        let num_earlier = tree.own_marks(id).count().saturating_sub(1);
        let before = tree.own_marks(id).take(num_earlier).last().unwrap_or(path.at);
        path.finish == Some(crate::FinishReason::Stop) && path.len() - before == 1
    };
    let count = |tree: &crate::Tree| {
        let paths = (0..).map(PathId).zip(tree.paths());
        paths.filter(|(id, path)| is_first(tree, *id, path)).count() as u64
    };
    forest.trees().iter().map(count).sum()
}
