//! A scheduler, a slot-reading model, and the calls of an embedding program.

use treepo::sim::{FakeModel, PlanArrays, TokenRule};
use treepo::{
    Error, PathId, SampledToken, Scheduler, SchedulerConfig, SearchConfig, TokenTexts, TreeId,
    Verdict,
};

use crate::{Choices, EOS, Key, TEXTS};

/// More steps than any run needs.
const MAX_STEPS: usize = 20_000;

/// The seed of all runs.
pub const SEED: u64 = 7;

/// How tokens are drawn.
pub fn rule() -> TokenRule {
    TokenRule { vocab_size: 7, eos_token_ids: vec![EOS], eos_permille: 40 }
}

/// A scheduler whose laws are checked after every call.
pub struct Machine {
    pub scheduler: Scheduler,
    pub prompts: Vec<(u64, Vec<u32>)>,
    /// Whether every decision was the search's own.
    pub is_undisturbed: bool,
    model: FakeModel,
    arrays: PlanArrays,
    open: Option<Vec<SampledToken>>,
}

impl Machine {
    /// None for a configuration that the scheduler refuses.
    pub fn new(search: SearchConfig, limits: SchedulerConfig) -> Option<Self> {
        let mut scheduler = Scheduler::new(search, limits, SEED).ok()?;
        scheduler.set_texts(TokenTexts::new(TEXTS)).ok()?;
        let (blocks, size, rows) = (limits.num_blocks, limits.block_size, limits.max_num_seqs);
        Some(Self {
            model: FakeModel::new(rule(), blocks, size, rows),
            arrays: PlanArrays::new(&scheduler.capacity()),
            scheduler,
            prompts: Vec::new(),
            is_undisturbed: true,
            open: None,
        })
    }

    /// A machine around the scheduler that these bytes are of, with an empty cache.
    pub fn resume(&self, bytes: &[u8]) -> Option<Self> {
        let scheduler = Scheduler::from_bytes(bytes).ok()?;
        scheduler.check().expect("the laws hold");
        let limits = *scheduler.config();
        let (blocks, size, rows) = (limits.num_blocks, limits.block_size, limits.max_num_seqs);
        Some(Self {
            model: FakeModel::new(rule(), blocks, size, rows),
            arrays: PlanArrays::new(&scheduler.capacity()),
            scheduler,
            prompts: Vec::new(),
            is_undisturbed: false,
            open: None,
        })
    }

    fn paths(&self) -> Vec<Key> {
        let trees = (0..).map(TreeId).zip(self.scheduler.forest().trees());
        let ids = |(tree, own): (TreeId, &treepo::Tree)| {
            (0..own.paths().len() as u32).map(move |path| (tree, PathId(path)))
        };
        trees.flat_map(ids).collect()
    }

    /// One call, whatever it returns; errors other than a refusal are faults.
    pub fn call(&mut self, choices: &mut Choices<'_>) {
        let operation = choices.below(32);
        match operation {
            0..=9 => self.plan(),
            10..=19 => self.commit(),
            20 | 21 => self.add_tree(choices),
            22 => self.prioritise(choices),
            23 | 24 => self.report(choices),
            25 => refused(self.scheduler.drop_memory()),
            _ => self.disturb(operation, choices),
        }
        self.check();
    }

    fn check(&mut self) {
        self.scheduler.check().expect("the laws hold");
        let pool = self.scheduler.memory().pool();
        self.model.poison(|block| pool.count(block) == 0);
    }

    fn add_tree(&mut self, choices: &mut Choices<'_>) {
        let (key, prompt) = (100 + self.prompts.len() as u64, choices.prompt(9));
        if self.scheduler.add_tree(key, &prompt).is_ok() {
            self.prompts.push((key, prompt));
        }
    }

    fn prioritise(&mut self, choices: &mut Choices<'_>) {
        let tree = TreeId(choices.id(self.prompts.len()));
        let priority = choices.one_of(&[i32::MIN, -1, 0, 1, i32::MAX]);
        refused(self.scheduler.set_priority(tree, priority));
    }

    fn report(&mut self, choices: &mut Choices<'_>) {
        let pending: Vec<Key> = self.scheduler.ended_segments().collect();
        let Some(&(tree, path)) = pending.get(choices.id(pending.len()) as usize) else { return };
        self.is_undisturbed = false;
        refused(self.scheduler.report(tree, path, choices.verdict()));
    }

    fn disturb(&mut self, operation: u32, choices: &mut Choices<'_>) {
        let paths = self.paths();
        let Some(&(tree, path)) = paths.get(choices.id(paths.len()) as usize) else { return };
        let len = self.scheduler.forest().path(tree, path).map_or(0, treepo::Path::len);
        let at = choices.below(len + 3);
        self.is_undisturbed = false;
        let scheduler = &mut self.scheduler;
        match operation {
            26 => refused(scheduler.abort_tree(tree)),
            27 | 28 => refused(scheduler.fork(tree, path, at)),
            29 => refused(scheduler.prune(tree, path)),
            30 => refused(scheduler.prune_subtree(tree, path, at)),
            _ => refused(scheduler.rewind(tree, path, at)),
        }
    }

    fn plan(&mut self) {
        let result = self.scheduler.plan_step(&mut self.arrays.buffers());
        assert_eq!(result.is_err(), self.open.is_some(), "{result:?}");
        let Ok(sizes) = result else { return };
        if sizes.num_rows > 0 {
            self.open = Some(self.model.run(&self.arrays.used(sizes)).expect("the model reads"));
        } else {
            let waits = self.scheduler.search().awaits_verdicts();
            assert!(self.scheduler.is_done() || waits, "S1: an empty plan");
        }
    }

    fn commit(&mut self) {
        match self.open.take() {
            None => assert!(self.scheduler.commit_step(&[]).is_err()),
            Some(tokens) => drop(self.scheduler.commit_step(&tokens).expect("a valid commit")),
        }
    }

    /// Commits the open plan, if there is one.
    pub fn close_plan(&mut self) {
        if self.open.is_some() {
            self.commit();
        }
    }

    /// Runs to the end and checks that nothing is left.
    pub fn finish(&mut self) {
        self.close_plan();
        let mut num_steps = 0;
        while !self.scheduler.is_done() {
            self.plan();
            self.check();
            self.close_plan();
            let pending: Vec<Key> = self.scheduler.ended_segments().collect();
            for (tree, path) in pending {
                let verdict = Verdict::Continue { score: 0.5 };
                self.is_undisturbed = false;
                self.scheduler.report(tree, path, verdict).expect("a verdict that is asked for");
            }
            self.check();
            num_steps += 1;
            assert!(num_steps < MAX_STEPS, "S1: no end");
        }
        let pool = self.scheduler.memory().pool();
        assert_eq!(pool.num_free(), pool.capacity(), "B4");
    }

    /// Runs some steps of a scheduler that no search may have led to: errors are right, panics are
    /// not.
    pub fn try_finish(&mut self) {
        for _ in 0..100 {
            let Ok(sizes) = self.scheduler.plan_step(&mut self.arrays.buffers()) else { return };
            let token = SampledToken { id: 1, logprob: -1.0, entropy: 1.0 };
            let tokens = vec![token; sizes.num_samples];
            if sizes.num_rows > 0 && self.scheduler.commit_step(&tokens).is_err() {
                return;
            }
        }
    }
}

/// A call may be refused; a broken law is a fault.
fn refused<T>(result: treepo::Result<T>) {
    if let Err(error @ Error::LawBroken { .. }) = result {
        panic!("{error}");
    }
}
