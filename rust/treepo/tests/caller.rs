//! The scheduler under the calls of an embedding program, mixed with late plans and commits on
//! tight pools: forks, pruning, going back, verdicts, priorities, lost memory, aborted trees.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use proptest::sample::select;
use treepo::search::{FallbackConfig, PruneConfig, PrunedLeaves, Verdicts};
use treepo::sim::{FakeModel, PlanArrays, TokenRule, oracle};
use treepo::{
    BlockId, Error, FallbackFrom, PathId, SampledToken, Scheduler, SchedulerConfig, SearchConfig,
    TreeId, Verdict,
};

const MAX_COMPLETION: u32 = 12;
const SEED: u64 = 5;

#[derive(Debug, Clone)]
enum Op {
    AddTree(Vec<u32>),
    Plan,
    Commit,
    Abort(usize),
    Fork(usize, usize),
    Prune(usize),
    PruneSubtree(usize, usize),
    Rewind(usize, usize),
    Report(usize, Verdict),
    Prioritise(usize, i32),
    DropMemory,
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        8 => (-3.0f32..3.0).prop_map(|score| Verdict::Continue { score }),
        1 => Just(Verdict::Stop),
        1 => Just(Verdict::Prune),
        1 => Just(Verdict::Continue { score: f32::NAN }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let place = || (any::<usize>(), any::<usize>());
    prop_oneof![
        3 => prop::collection::vec(0u32..3, 1..12).prop_map(Op::AddTree),
        30 => Just(Op::Plan),
        30 => Just(Op::Commit),
        1 => any::<usize>().prop_map(Op::Abort),
        4 => place().prop_map(|(path, at)| Op::Fork(path, at)),
        4 => any::<usize>().prop_map(Op::Prune),
        2 => place().prop_map(|(path, at)| Op::PruneSubtree(path, at)),
        4 => place().prop_map(|(path, at)| Op::Rewind(path, at)),
        12 => (any::<usize>(), verdict()).prop_map(|(path, verdict)| Op::Report(path, verdict)),
        3 => (any::<usize>(), select(vec![i32::MIN, -1, 0, 1, i32::MAX]))
            .prop_map(|(tree, priority)| Op::Prioritise(tree, priority)),
        1 => Just(Op::DropMemory),
    ]
}

/// A pool of just one path or more; small rows and steps.
fn limits() -> impl Strategy<Value = SchedulerConfig> {
    let numbers = (1u32..5, 0u32..20, 1u32..6, 1u32..12);
    (numbers, select(vec![0, 200]), select(vec![0, 32])).prop_map(|(numbers, percent, age_bias)| {
        let (block_size, more, max_num_seqs, max_num_batched_tokens) = numbers;
        let one_path = (11 + MAX_COMPLETION).div_ceil(block_size);
        SchedulerConfig {
            num_blocks: 1 + one_path + more,
            block_size,
            max_num_seqs,
            max_num_batched_tokens,
            admission_percent: percent,
            age_bias,
        }
    })
}

fn search() -> impl Strategy<Value = SearchConfig> {
    let numbers = (1u32..7, 1u32..4, 1u32..4, 1u32..4);
    let from = select(vec![FallbackFrom::Nothing, FallbackFrom::Answered, FallbackFrom::All]);
    let leaves = select(vec![PrunedLeaves::Count, PrunedLeaves::AreReplaced]);
    (numbers, from, leaves, any::<bool>()).prop_map(|(numbers, from, leaves, is_judged)| {
        let (width, segment_len, branch_factor, initial_divergence) = numbers;
        SearchConfig {
            width,
            segment_len,
            max_depth: MAX_COMPLETION / segment_len,
            branch_factor,
            initial_divergence,
            fallback: FallbackConfig { from, ..FallbackConfig::default() },
            prune: PruneConfig { leaves, ..PruneConfig::default() },
            verdicts: if is_judged { Verdicts::Segments } else { Verdicts::Nothing },
            eos_token_ids: vec![9],
            ..SearchConfig::default()
        }
    })
}

fn rule() -> TokenRule {
    TokenRule { vocab_size: 9, eos_token_ids: vec![9], eos_permille: 100 }
}

type Key = (TreeId, PathId);

struct Machine {
    scheduler: Scheduler,
    model: FakeModel,
    arrays: PlanArrays,
    open: Option<Vec<SampledToken>>,
    num_trees: u32,
}

impl Machine {
    fn new(search: SearchConfig, limits: SchedulerConfig) -> Self {
        let scheduler = Scheduler::new(search, limits, SEED).unwrap();
        let (blocks, size, rows) = (limits.num_blocks, limits.block_size, limits.max_num_seqs);
        Self {
            model: FakeModel::new(rule(), blocks, size, rows),
            arrays: PlanArrays::new(&scheduler.capacity()),
            scheduler,
            open: None,
            num_trees: 0,
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::AddTree(ref prompt) => {
                let key = 100 + u64::from(self.num_trees);
                let tree = self.scheduler.add_tree(key, prompt).unwrap();
                assert_eq!(tree.0, self.num_trees);
                self.num_trees += 1;
            }
            Op::Plan => self.plan(),
            Op::Commit => self.commit(),
            Op::Abort(tree) => {
                let tree = TreeId((tree % (self.num_trees as usize + 1)) as u32);
                let may_abort = self.open.is_none() && tree.0 < self.num_trees;
                assert_eq!(self.scheduler.abort_tree(tree).is_ok(), may_abort, "tree {tree}");
            }
            Op::Prioritise(tree, priority) => {
                let tree = TreeId((tree % (self.num_trees as usize + 1)) as u32);
                let is_known = tree.0 < self.num_trees;
                assert_eq!(self.scheduler.set_priority(tree, priority).is_ok(), is_known);
            }
            Op::DropMemory => self.drop_memory(),
            Op::Fork(path, at) => self.fork(path, at),
            Op::Prune(path) => self.prune(path),
            Op::PruneSubtree(path, at) => self.prune_subtree(path, at),
            Op::Rewind(path, at) => self.rewind(path, at),
            Op::Report(path, verdict) => self.report(path, verdict),
        }
        self.scheduler.check().unwrap();
        let pool = self.scheduler.memory().pool();
        self.model.poison(|block| pool.count(block) == 0);
    }

    fn plan(&mut self) {
        let was_open = self.open.is_some();
        let result = self.scheduler.plan_step(&mut self.arrays.buffers());
        assert_eq!(result.is_err(), was_open, "{result:?}");
        let Ok(sizes) = result else { return };
        if sizes.num_rows > 0 {
            self.open = Some(self.model.run(&self.arrays.used(sizes)).unwrap());
        } else {
            let pending = self.scheduler.ended_segments().count();
            assert!(self.scheduler.is_done() || pending > 0, "S1: an empty plan");
        }
    }

    fn commit(&mut self) {
        match self.open.take() {
            None => assert!(matches!(self.scheduler.commit_step(&[]), Err(Error::InvalidInput(_)))),
            Some(tokens) => drop(self.scheduler.commit_step(&tokens).unwrap()),
        }
    }

    fn drop_memory(&mut self) {
        self.scheduler.drop_memory().unwrap();
        self.open = None; // An open plan is given up.
        let pool = self.scheduler.memory().pool();
        assert_eq!(pool.num_free(), pool.capacity(), "everything is forgotten");
    }

    /// One of all paths.
    fn choose(&self, choice: usize) -> Option<Key> {
        let all: Vec<Key> = self.paths().collect();
        (!all.is_empty()).then(|| all[choice % all.len()])
    }

    fn paths(&self) -> impl Iterator<Item = Key> + '_ {
        let trees = (0..).map(TreeId).zip(self.scheduler.forest().trees());
        trees.flat_map(|(tree, own)| (0..own.paths().len() as u32).map(move |p| (tree, PathId(p))))
    }

    fn len(&self, (tree, path): Key) -> u32 {
        self.scheduler.forest().path(tree, path).unwrap().len()
    }

    fn is_live(&self, (tree, path): Key) -> bool {
        self.scheduler.forest().path(tree, path).unwrap().finish.is_none()
    }

    fn computed(&self, (tree, path): Key) -> u32 {
        self.scheduler.memory().num_computed(tree, path).unwrap_or(0)
    }

    fn table(&self, (tree, path): Key) -> Vec<BlockId> {
        self.scheduler.memory().block_table(tree, path).unwrap_or_default()
    }

    /// A position from the first sampled token on, or just outside.
    fn position(&self, key: Key, choice: usize) -> u32 {
        let prompt_len = self.scheduler.forest().tree(key.0).unwrap().prompt_len;
        prompt_len - 1 + choice as u32 % (self.len(key) - prompt_len + 3)
    }

    fn fork(&mut self, choice: usize, at: usize) {
        let Some(key) = self.choose(choice) else { return };
        let (at, resident) = (self.position(key, at), self.computed(key));
        let Ok(new) = self.scheduler.fork(key.0, key.1, at) else { return };
        assert!(self.open.is_none());
        assert_eq!(self.len((key.0, new)), at);
        assert!(self.computed((key.0, new)) >= at.min(resident), "it shares what is resident");
    }

    fn rewind(&mut self, choice: usize, at: usize) {
        let Some(key) = self.choose(choice) else { return };
        let (at, resident) = (self.position(key, at), self.computed(key));
        let was_live = self.is_live(key);
        let Ok(new) = self.scheduler.rewind(key.0, key.1, at) else { return };
        assert!(self.open.is_none() && was_live && !self.is_live(key));
        assert_eq!(self.len((key.0, new)), at);
        assert!(self.computed((key.0, new)) >= at.min(resident), "it keeps what is resident");
        assert_eq!(self.computed(key), 0);
    }

    fn report(&mut self, choice: usize, verdict: Verdict) {
        let pending: Vec<Key> = self.scheduler.ended_segments().collect();
        let key = match pending.len() {
            0 => self.choose(choice),
            n => Some(pending[choice % n]),
        };
        let Some((tree, path)) = key else { return };
        let is_finite = !matches!(verdict, Verdict::Continue { score } if !score.is_finite());
        let may_report = self.open.is_none() && !pending.is_empty() && is_finite;
        let result = self.scheduler.report(tree, path, verdict);
        assert_eq!(result.is_ok(), may_report, "{result:?}");
    }

    fn prune(&mut self, choice: usize) {
        let Some(key) = self.choose(choice) else { return };
        let is_possible = self.open.is_none() && self.is_live(key);
        let tables: Vec<_> =
            self.paths().filter(|&other| other != key).map(|other| self.table(other)).collect();
        let expected = self.exclusive(key, &tables);
        let has_twin = self.paths().any(|other| self.is_twin(key, other));
        let (num_free, num_paths) =
            (self.scheduler.memory().pool().num_free(), self.scheduler.forest().num_paths());
        let result = self.scheduler.prune(key.0, key.1);
        assert_eq!(result.is_ok(), is_possible, "{result:?}");
        if !is_possible || self.scheduler.search().is_tree_done(key.0) {
            return;
        }
        let freed = self.scheduler.memory().pool().num_free() - num_free;
        assert!(self.table(key).is_empty() && self.computed(key) == 0);
        let is_taken_over = has_twin || self.scheduler.forest().num_paths() > num_paths;
        let is_exact = expected.contains(&freed);
        assert!(is_exact || (is_taken_over && freed <= expected[1]), "{freed} of {expected:?}");
    }

    /// Whether `other` may wait to be sampled from this path's row.
    fn is_twin(&self, key: Key, other: Key) -> bool {
        let at = |(tree, path): Key| self.scheduler.forest().path(tree, path).unwrap().at;
        let is_sibling = other.0 == key.0 && other != key && self.is_live(other);
        is_sibling && self.len(other) == self.len(key) && at(other) == self.len(other)
    }

    /// Blocks that only this path holds, by the tables of all others and the counts: without and
    /// with a partly filled block that it has not copied yet and that nobody else has.
    fn exclusive(&self, key: Key, others: &[Vec<BlockId>]) -> [u32; 2] {
        let (pool, table) = (self.scheduler.memory().pool(), self.table(key));
        let num_shared = table
            .iter()
            .take_while(|&block| others.iter().any(|other| other.contains(block)))
            .count();
        let own = &table[num_shared..];
        assert!(!own.iter().any(|block| others.iter().any(|other| other.contains(block))));
        let count = |followers_of_last: u32| {
            let is_last = |i: usize| u32::from(i == 0) * followers_of_last;
            let blocks = own.iter().rev().enumerate();
            let free = blocks.take_while(|&(i, &block)| pool.count(block) == 1 + is_last(i));
            free.count() as u32
        };
        let block_size = self.scheduler.config().block_size;
        let has_pending = self.computed(key) > table.len() as u32 * block_size;
        let without = count(0);
        [without, if has_pending { 1 + count(1) } else { without }]
    }

    fn prune_subtree(&mut self, choice: usize, at: usize) {
        let Some(key) = self.choose(choice) else { return };
        let at = self.position(key, at);
        let prompt_len = self.scheduler.forest().tree(key.0).unwrap().prompt_len;
        let is_inside = (prompt_len..=self.len(key)).contains(&at);
        let is_possible = is_inside && self.open.is_none();
        let inside: Vec<Key> = self
            .paths()
            .filter(|&other| is_possible && other.0 == key.0 && self.is_live(other))
            .filter(|&other| self.len(other) >= at)
            .filter(|&other| self.owner(other, at - 1) == self.owner(key, at - 1))
            .collect();
        let result = self.scheduler.prune_subtree(key.0, key.1, at);
        assert_eq!(result.ok(), is_possible.then_some(inside.len() as u32));
        assert!(inside.iter().all(|&key| !self.is_live(key) && self.table(key).is_empty()));
    }

    fn owner(&self, (tree, path): Key, position: u32) -> PathId {
        let own = self.scheduler.forest().path(tree, path).unwrap();
        match own.parent() {
            Some(parent) if position < own.at => self.owner((tree, parent), position),
            _ => path,
        }
    }

    fn finish(&mut self) {
        if self.open.is_some() {
            self.apply(&Op::Commit);
        }
        let mut num_steps = 0;
        while !self.scheduler.is_done() {
            self.apply(&Op::Plan);
            if self.open.is_some() {
                self.apply(&Op::Commit);
            }
            let pending: Vec<Key> = self.scheduler.ended_segments().collect();
            for (tree, path) in pending {
                self.scheduler.report(tree, path, Verdict::Continue { score: 0.0 }).unwrap();
            }
            num_steps += 1;
            assert!(num_steps < 20_000, "S1: no end");
        }
        let pool = self.scheduler.memory().pool();
        assert_eq!(pool.num_free(), pool.capacity(), "B4");
        let mut finished = self.scheduler.take_finished();
        finished.sort_unstable();
        let all: Vec<TreeId> = (0..self.num_trees).map(TreeId).collect();
        assert_eq!(finished, all, "each tree is reported once");
        oracle::check_tokens(self.scheduler.forest(), &rule(), SEED).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_laws_hold_whatever_the_caller_does_between_the_steps(
        search in search(),
        limits in limits(),
        ops in prop::collection::vec(op(), 0..120),
    ) {
        let mut machine = Machine::new(search, limits);
        for op in &ops {
            machine.apply(op);
        }
        machine.finish();
    }
}

/// A machine that is never short of anything, with blocks of 16 tokens.
fn roomy(search: SearchConfig) -> Machine {
    Machine::new(search, SchedulerConfig::default())
}

#[test]
fn a_pruned_path_is_not_sampled_from_the_row_of_the_path_that_it_left() {
    let mut machine = roomy(SearchConfig { initial_divergence: 2, ..SearchConfig::default() });
    machine.apply(&Op::AddTree(vec![1, 2]));
    machine.scheduler.prune(TreeId(0), PathId(1)).unwrap();
    machine.apply(&Op::Plan);
    machine.apply(&Op::Commit);
    machine.finish();
}

#[test]
fn a_path_keeps_what_is_resident_when_it_is_rewound_behind_many_younger_paths() {
    let mut machine = roomy(SearchConfig { width: 99, ..SearchConfig::default() });
    machine.apply(&Op::AddTree(vec![1, 2, 3]));
    machine.apply(&Op::Plan);
    machine.apply(&Op::Commit);
    let (tree, old) = (TreeId(0), PathId(1));
    machine.scheduler.prune(tree, PathId(0)).unwrap();
    for _ in 0..64 {
        let young = machine.scheduler.fork(tree, old, 4).unwrap();
        machine.scheduler.prune(tree, young).unwrap();
    }
    let resident = machine.scheduler.memory().num_computed(tree, old).unwrap();
    let new = machine.scheduler.rewind(tree, old, 3).unwrap();
    assert_eq!(machine.scheduler.memory().num_computed(tree, new).unwrap(), resident.min(3));
}
