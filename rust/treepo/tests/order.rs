//! Who runs first, who loses memory to whom, and when a tree is admitted.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use treepo::search::{FallbackConfig, Verdicts};
use treepo::sim::{FakeModel, PlanArrays, TokenRule};
use treepo::{
    FallbackFrom, PathId, Scheduler, SchedulerConfig, SearchConfig, Stats, TreeId, Verdict,
};

const ROOT: PathId = PathId(0);

struct Machine {
    scheduler: Scheduler,
    model: FakeModel,
    arrays: PlanArrays,
}

impl Machine {
    fn new(search: SearchConfig, limits: SchedulerConfig, eos_permille: u32) -> Self {
        let rule = TokenRule { vocab_size: 9, eos_token_ids: vec![9], eos_permille };
        let scheduler = Scheduler::new(search, limits, 1).unwrap();
        let (blocks, size, rows) = (limits.num_blocks, limits.block_size, limits.max_num_seqs);
        Self {
            model: FakeModel::new(rule, blocks, size, rows),
            arrays: PlanArrays::new(&scheduler.capacity()),
            scheduler,
        }
    }

    fn add(&mut self, key: u64, prompt_len: u32) -> TreeId {
        let prompt: Vec<u32> = (0..prompt_len).map(|i| (key as u32 * 5 + i) % 9).collect();
        self.scheduler.add_tree(key, &prompt).unwrap()
    }

    /// One step; the trees that it samples.
    fn step(&mut self) -> Vec<TreeId> {
        let sizes = self.scheduler.plan_step(&mut self.arrays.buffers()).unwrap();
        let trees = self.scheduler.sampled_paths().map(|(tree, _)| tree).collect();
        if sizes.num_rows > 0 {
            let tokens = self.model.run(&self.arrays.used(sizes)).unwrap();
            self.scheduler.commit_step(&tokens).unwrap();
        }
        self.scheduler.check().unwrap();
        let pool = self.scheduler.memory().pool();
        self.model.poison(|block| pool.count(block) == 0);
        trees
    }

    fn computed(&self, tree: TreeId) -> u32 {
        self.scheduler.memory().num_computed(tree, ROOT).unwrap()
    }

    fn is_done(&self, tree: TreeId) -> bool {
        self.scheduler.search().is_tree_done(tree)
    }

    fn run(mut self) -> Stats {
        while !self.scheduler.is_done() {
            self.step();
        }
        self.scheduler.stats()
    }
}

/// Chains of segments of 2 tokens, all of a tree's from the first.
fn chains(width: u32, max_depth: u32) -> SearchConfig {
    let fallback = FallbackConfig { from: FallbackFrom::Nothing, ..FallbackConfig::default() };
    SearchConfig {
        width,
        segment_len: 2,
        max_depth,
        initial_divergence: width,
        eos_token_ids: vec![9],
        fallback,
        ..SearchConfig::default()
    }
}

/// The tree that each step samples, where two trees of two chains share two rows.
fn turns(age_bias: u32) -> Vec<u32> {
    let limits = SchedulerConfig { max_num_seqs: 2, age_bias, ..SchedulerConfig::default() };
    let mut machine = Machine::new(chains(2, 4), limits, 0);
    machine.add(1, 3);
    machine.add(2, 3);
    let step = |machine: &mut Machine| {
        let trees = machine.step();
        assert!(trees.len() == 2 && trees[0] == trees[1], "{trees:?}");
        trees[0].0
    };
    (0..16).map(|_| step(&mut machine)).collect()
}

#[test]
fn rows_go_to_the_tree_with_fewest_tokens_and_age_counts_as_tokens() {
    assert_eq!(turns(0), [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1]);
    assert_eq!(turns(5), [0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]);
    assert_eq!(turns(u32::MAX), [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
}

/// Blocks of one token, so that each token counts.
fn tight(num_blocks: u32) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: num_blocks + 1,
        block_size: 1,
        admission_percent: 1000,
        ..SchedulerConfig::default()
    }
}

#[test]
fn a_waiting_path_keeps_its_memory_while_others_can_run_without_it() {
    let search = SearchConfig { segment_len: 20, verdicts: Verdicts::Segments, ..chains(1, 2) };
    let mut machine = Machine::new(search, tight(55), 0);
    let waiting = machine.add(1, 2);
    while machine.scheduler.ended_segments().next().is_none() {
        machine.step();
    }
    let important = machine.add(2, 10);
    machine.add(3, 10);
    let resident = machine.computed(waiting);
    assert_eq!(resident, 21, "a prompt and a segment, whose last token has not been fed");
    while machine.scheduler.ended_segments().all(|(tree, _)| tree != important) {
        machine.step();
        assert_eq!(machine.computed(waiting), resident);
    }
    assert!(machine.scheduler.stats().preemptions > 0, "memory was never short");
}

/// An old tree of 30 + 7 tokens and chunks of 3 tokens of a new, more important one fill the pool.
/// Returns how often a row was taken.
fn preemptions_while_the_important_keeps_its_memory(num_blocks: u32, prompt_len: u32) -> u64 {
    let limits = SchedulerConfig { max_num_batched_tokens: 4, ..tight(num_blocks) };
    let mut machine = Machine::new(SearchConfig::flat(1, 20), limits, 0);
    let old = machine.add(1, 30);
    while machine.computed(old) < 30 {
        machine.step();
    }
    let important = machine.add(2, prompt_len);
    machine.scheduler.set_priority(important, 1).unwrap();
    let mut resident = 0;
    while !machine.is_done(important) {
        let before = std::mem::replace(&mut resident, machine.computed(important));
        assert!(resident >= before, "{resident} of {before} tokens are left");
        machine.step();
    }
    assert!(!machine.is_done(old));
    machine.scheduler.stats().preemptions
}

#[test]
fn a_row_is_not_taken_from_a_more_important_path() {
    let preemptions = preemptions_while_the_important_keeps_its_memory(58, 38);
    assert_eq!(preemptions, 1, "the old tree's row alone");
}

#[test]
fn memory_is_not_taken_from_a_more_important_path_that_could_run() {
    // the old row has been planned when the important one finds no blocks, so both lose theirs
    assert_eq!(preemptions_while_the_important_keeps_its_memory(60, 40), 2);
}

/// Runs whole trees of two chains, of `num_steps` steps each that are left, one after the other.
fn assert_order(machine: &mut Machine, trees: &[(TreeId, usize)]) {
    for &(tree, num_steps) in trees {
        for _ in 0..num_steps {
            assert_eq!(machine.step(), [tree; 2]);
        }
    }
}

#[test]
fn a_path_that_waits_comes_first_when_its_tree_becomes_important() {
    let limits = SchedulerConfig { max_num_seqs: 2, age_bias: 999, ..SchedulerConfig::default() };
    let mut machine = Machine::new(chains(2, 4), limits, 0);
    let [first, second] = [1, 2].map(|key| machine.add(key, 3));
    assert_order(&mut machine, &[(first, 1)]);
    machine.scheduler.set_priority(second, 1).unwrap();
    assert_order(&mut machine, &[(first, 1), (second, 8), (first, 6)]);
}

#[test]
fn a_queued_tree_comes_first_when_it_becomes_important() {
    // with 0 % of the pool, one tree at a time
    let limits = SchedulerConfig { admission_percent: 0, ..SchedulerConfig::default() };
    let mut machine = Machine::new(chains(2, 4), limits, 0);
    let [first, second, third] = [1, 2, 3].map(|key| machine.add(key, 3));
    assert_order(&mut machine, &[(first, 1)]);
    machine.scheduler.set_priority(third, 1).unwrap();
    assert_order(&mut machine, &[(first, 7), (third, 8), (second, 8)]);
}

#[test]
fn an_idle_path_still_gives_its_memory_when_its_priority_has_changed() {
    let search = SearchConfig { segment_len: 20, verdicts: Verdicts::Segments, ..chains(1, 2) };
    let mut machine = Machine::new(search, tight(65), 0);
    let waiting = machine.add(1, 2);
    while machine.scheduler.ended_segments().next().is_none() {
        machine.step();
    }
    machine.scheduler.set_priority(waiting, -1).unwrap();
    let other = machine.add(2, 10);
    machine.add(3, 10);
    while machine.scheduler.ended_segments().all(|(tree, _)| tree != other) {
        machine.step();
    }
    assert!(machine.computed(waiting) < 21, "memory was never short");
    assert_eq!(machine.scheduler.stats().preemptions, 0, "nobody else gave way");
}

/// Blocks that a tree needs at worst, by the documented rule.
fn worst_growth(search: &SearchConfig, prompt_len: u32, block_size: u32) -> u32 {
    let leaf = search.max_completion_len().div_ceil(block_size) + 1;
    prompt_len.div_ceil(block_size) + search.width * leaf
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn trees_that_fit_at_worst_never_preempt(
        (width, depth, first, factor) in (1u32..9, 1u32..6, 1u32..9, 1u32..4),
        (block_size, more, max_num_seqs) in (1u32..6, 0u32..60, 1u32..20),
        prompts in prop::collection::vec(1u32..12, 2..6),
        eos_permille in prop::sample::select(vec![0u32, 0, 100]),
    ) {
        let mut search = SearchConfig {
            initial_divergence: first,
            branch_factor: factor,
            ..chains(width, depth)
        };
        search.fallback.from = FallbackFrom::All;
        let least = prompts.iter().map(|&len| worst_growth(&search, len, block_size)).max();
        let limits = SchedulerConfig {
            num_blocks: 1 + least.unwrap() + more,
            block_size,
            max_num_seqs,
            admission_percent: 100,
            ..SchedulerConfig::default()
        };
        let mut machine = Machine::new(search, limits, eos_permille);
        for (key, &len) in (0..).zip(&prompts) {
            machine.add(key, len);
        }
        prop_assert_eq!(machine.run().preemptions, 0);
    }
}

#[test]
fn a_tree_comes_in_when_enough_leaves_of_the_one_before_it_are_finished() {
    let search = SearchConfig { verdicts: Verdicts::Segments, ..chains(4, 4) };
    let block_size = 4;
    // the first tree with one leaf missing, and the second one
    let one_leaf = SearchConfig { width: 1, ..search.clone() };
    let needed = worst_growth(&one_leaf, 4, block_size) + worst_growth(&search, 4, block_size);
    let limits = |num_blocks| SchedulerConfig {
        num_blocks: 1 + num_blocks,
        block_size,
        admission_percent: 100,
        ..SchedulerConfig::default()
    };
    for (num_blocks, comes_in) in [(needed, true), (needed - 1, false)] {
        let mut machine = Machine::new(search.clone(), limits(num_blocks), 0);
        let (first, second) = (machine.add(1, 4), machine.add(2, 4));
        assert_eq!(machine.step(), [first; 4]);
        assert_eq!(machine.step(), [first; 4]);
        let ended: Vec<_> = machine.scheduler.ended_segments().collect();
        for &(tree, path) in &ended[1..] {
            machine.scheduler.report(tree, path, Verdict::Stop).unwrap();
        }
        assert!(!machine.is_done(first));
        let expected = if comes_in { vec![second; 4] } else { vec![] };
        assert_eq!(machine.step(), expected, "{num_blocks} blocks");
    }
}
