//! The scheduler under calls in any order: trees come at any time, plans are committed late, trees
//! are aborted in mid-flight. Laws are checked after every call.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use treepo::search::{Alignment, BranchBy, FallbackAt};
use treepo::sim::{FakeModel, PlanArrays, TokenRule, oracle};
use treepo::{
    Error, FinishReason, SampledToken, Scheduler, SchedulerConfig, SearchConfig, Stats, TreeId,
};

#[derive(Debug, Clone)]
enum Op {
    AddTree(Vec<u32>),
    Plan,
    Commit,
    Abort(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => prop::collection::vec(0u32..9, 1..12).prop_map(Op::AddTree),
        20 => Just(Op::Plan),
        20 => Just(Op::Commit),
        1 => any::<usize>().prop_map(Op::Abort),
    ]
}

/// A pool of just one path or more; small rows and steps.
fn limits() -> impl Strategy<Value = SchedulerConfig> {
    (1u32..5, 0u32..20, 1u32..6, 1u32..12).prop_map(|(block_size, more, rows, tokens)| {
        let one_path = (11u32 + 12).div_ceil(block_size);
        SchedulerConfig {
            num_blocks: 1 + one_path + more,
            block_size,
            max_num_seqs: rows,
            max_num_batched_tokens: tokens,
            ..SchedulerConfig::default()
        }
    })
}

fn search() -> impl Strategy<Value = SearchConfig> {
    (1u32..7, 1u32..4, 1u32..4, 1u32..4).prop_map(|(width, len, factor, first)| SearchConfig {
        width,
        segment_len: len,
        max_depth: 12 / len,
        branch_factor: factor,
        initial_divergence: first,
        eos_token_ids: vec![9],
        ..SearchConfig::default()
    })
}

fn rule() -> TokenRule {
    TokenRule { vocab_size: 9, eos_token_ids: vec![9], eos_permille: 150 }
}

struct Machine {
    scheduler: Scheduler,
    model: FakeModel,
    arrays: PlanArrays,
    open: Option<Vec<SampledToken>>,
    prompts: Vec<(u64, Vec<u32>)>,
    aborted: Vec<TreeId>,
}

impl Machine {
    fn new(search: SearchConfig, limits: SchedulerConfig) -> Self {
        let scheduler = Scheduler::new(search, limits, 5).unwrap();
        let (blocks, size, rows) = (limits.num_blocks, limits.block_size, limits.max_num_seqs);
        Self {
            model: FakeModel::new(rule(), blocks, size, rows),
            arrays: PlanArrays::new(&scheduler.capacity()),
            scheduler,
            open: None,
            prompts: Vec::new(),
            aborted: Vec::new(),
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::AddTree(prompt) => {
                let key = 100 + self.prompts.len() as u64;
                let tree = self.scheduler.add_tree(key, prompt).unwrap();
                assert_eq!(tree.index(), self.prompts.len());
                self.prompts.push((key, prompt.clone()));
            }
            Op::Plan => self.plan(),
            Op::Commit => self.commit(),
            Op::Abort(tree) => self.abort(*tree),
        }
        self.scheduler.check().unwrap();
        let pool = self.scheduler.memory().pool();
        self.model.poison(|block| pool.count(block) == 0);
    }

    fn plan(&mut self) {
        let was_open = self.open.is_some();
        let result = self.scheduler.plan_step(&mut self.arrays.buffers());
        assert_eq!(result.is_err(), was_open, "a plan while one is open");
        let Ok(sizes) = result else { return };
        assert_eq!(sizes.num_rows == 0, self.scheduler.is_done(), "S1");
        if sizes.num_rows > 0 {
            self.open = Some(self.model.run(&self.arrays.used(sizes)).unwrap());
        }
    }

    fn commit(&mut self) {
        match self.open.take() {
            None => assert!(matches!(self.scheduler.commit_step(&[]), Err(Error::InvalidInput(_)))),
            Some(tokens) => drop(self.scheduler.commit_step(&tokens).unwrap()),
        }
    }

    fn abort(&mut self, tree: usize) {
        let tree = TreeId((tree % (self.prompts.len() + 1)) as u32);
        let result = self.scheduler.abort_tree(tree);
        let may_abort = self.open.is_none() && tree.index() < self.prompts.len();
        assert_eq!(result.is_ok(), may_abort, "abort of tree {tree}");
        if may_abort {
            self.aborted.push(tree);
        }
    }

    fn finish(&mut self) {
        while !self.scheduler.is_done() {
            self.apply(&Op::Plan);
            self.apply(&Op::Commit);
        }
        let pool = self.scheduler.memory().pool();
        assert_eq!(pool.num_free(), pool.capacity(), "B4");
        let mut finished = self.scheduler.take_finished();
        finished.sort_unstable();
        let all: Vec<TreeId> = (0..self.prompts.len() as u32).map(TreeId).collect();
        assert_eq!(finished, all, "each tree is reported once");
    }

    /// Trees that were not cut short are those of the oracle, whatever was aborted beside them.
    fn compare(&self, search: &SearchConfig) {
        let is_whole = |tree: &TreeId| {
            let paths = self.scheduler.forest().trees()[tree.index()].paths();
            paths.iter().all(|path| path.finish != Some(FinishReason::Abort))
        };
        let whole: Vec<TreeId> =
            (0..self.prompts.len() as u32).map(TreeId).filter(is_whole).collect();
        assert!(whole.len() + self.aborted.len() >= self.prompts.len());
        let prompts: Vec<_> = whole.iter().map(|t| self.prompts[t.index()].clone()).collect();
        let expected = oracle::grow(search, &rule(), 5, &prompts).unwrap();
        let actual = self.scheduler.forest().select(&whole).unwrap();
        oracle::check_same_trees(&actual, &expected).unwrap();
    }
}

proptest! {
    #[test]
    fn the_laws_hold_for_calls_in_any_order(
        search in search(),
        limits in limits(),
        ops in prop::collection::vec(op(), 0..120),
    ) {
        let mut machine = Machine::new(search.clone(), limits);
        for op in &ops {
            machine.apply(op);
        }
        if machine.open.is_some() {
            machine.apply(&Op::Commit);
        }
        machine.finish();
        machine.compare(&search);
    }
}

/// 256 tables of 32 blocks each do not fit the array of one step; memory is plentiful.
#[test]
fn a_full_array_of_table_updates_preempts_nobody() {
    let limits = SchedulerConfig { num_blocks: 1024, ..SchedulerConfig::default() };
    let mut machine = Machine::new(SearchConfig::flat(256, 4), limits);
    machine.apply(&Op::AddTree(vec![1; 512]));
    machine.finish();
    let stats = machine.scheduler.stats();
    assert_eq!((stats.preemptions, stats.recomputed_tokens), (0, 0));
    assert!(stats.steps > 4, "all tables fit one step");
}

/// Stats of six trees in plentiful memory.
fn stats_of(search: SearchConfig) -> Stats {
    let limits = SchedulerConfig { num_blocks: 4096, block_size: 4, ..SchedulerConfig::default() };
    let mut machine = Machine::new(search, limits);
    for tree in 0..6 {
        machine.apply(&Op::AddTree(vec![tree; 7]));
    }
    machine.finish();
    machine.scheduler.stats()
}

#[test]
fn a_leaf_gives_up_memory_that_the_search_will_not_fork_it_in() {
    let boundaries = SearchConfig {
        width: 8,
        segment_len: 12,
        max_depth: 3,
        eos_token_ids: vec![9],
        ..SearchConfig::default()
    };
    let stats = stats_of(boundaries.clone());
    assert!(stats.trimmed_blocks > 0 && stats.fallbacks > 0);
    assert_eq!((stats.recomputed_tokens, stats.evictions), (0, 0));

    // Without a fallback nothing behind the prompt is forked again: 36 tokens fill at least 8 blocks.
    let stats = stats_of(SearchConfig::flat(8, 36));
    assert!(stats.trimmed_blocks >= 6 * 8 * 8, "{stats:?}");
    assert_eq!((stats.recomputed_tokens, stats.evictions), (0, 0));

    let mut anywhere = boundaries.clone();
    anywhere.fallback.at = FallbackAt::LowestLogprob;
    anywhere.fallback.alignment = Alignment::Token;
    let mut at_tokens = boundaries;
    at_tokens.branch.by = BranchBy::TokenSurprisal;
    for search in [anywhere, at_tokens] {
        let stats = stats_of(search);
        assert_eq!((stats.trimmed_blocks, stats.recomputed_tokens), (0, 0));
    }
}
