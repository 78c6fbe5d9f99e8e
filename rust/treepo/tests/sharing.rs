//! What trees and paths have in common: what is shared, who keeps it, and what weights computed it.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::sim::{FakeModel, PlanArrays, TokenRule};
use treepo::{PathId, Scheduler, SchedulerConfig, SearchConfig, TreeId};

/// Trees whose paths never end early, over blocks of 4 tokens.
struct Machine {
    scheduler: Scheduler,
    model: FakeModel,
    arrays: PlanArrays,
    num_trees: u32,
}

impl Machine {
    /// Trees of one path.
    fn chains(max_num_batched_tokens: u32) -> Self {
        let limits = SchedulerConfig { max_num_batched_tokens, ..SchedulerConfig::default() };
        Self::new(SearchConfig::flat(1, 500), limits)
    }

    fn new(search: SearchConfig, limits: SchedulerConfig) -> Self {
        let limits = SchedulerConfig { block_size: 4, ..limits };
        let rule = TokenRule { vocab_size: 9, eos_token_ids: vec![9], eos_permille: 0 };
        let scheduler = Scheduler::new(search, limits, 1).unwrap();
        Self {
            model: FakeModel::new(rule, limits.num_blocks, 4, limits.max_num_seqs),
            arrays: PlanArrays::new(&scheduler.capacity()),
            scheduler,
            num_trees: 0,
        }
    }

    fn add(&mut self, prompt: &[u32]) -> TreeId {
        self.num_trees += 1;
        self.scheduler.add_tree(u64::from(self.num_trees), prompt).unwrap()
    }

    fn step(&mut self) {
        let sizes = self.scheduler.plan_step(&mut self.arrays.buffers()).unwrap();
        let tokens = self.model.run(&self.arrays.used(sizes)).unwrap();
        self.scheduler.commit_step(&tokens).unwrap();
        self.scheduler.check().unwrap();
    }

    fn computed(&self, tree: TreeId, path: PathId) -> u32 {
        self.scheduler.memory().num_computed(tree, path).unwrap()
    }

    /// Steps until the whole prompt of a tree is resident; how much of it was shared.
    fn compute(&mut self, tree: TreeId) -> u64 {
        let before = self.scheduler.stats().shared_prefix_tokens;
        let prompt_len = self.scheduler.forest().tree(tree).unwrap().prompt_len;
        while self.computed(tree, PathId(0)) < prompt_len {
            self.step();
        }
        self.scheduler.stats().shared_prefix_tokens - before
    }
}

const PROMPT: [u32; 17] = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1];

#[test]
fn full_blocks_of_a_resident_prompt_are_shared() {
    let mut machine = Machine::chains(256);
    let first = machine.add(&PROMPT);
    machine.compute(first);
    let same = machine.add(&PROMPT);
    assert_eq!(machine.compute(same), 16);
    let shorter = machine.add(&PROMPT[..11]);
    assert_eq!(machine.compute(shorter), 8);
    let other = machine.add(&[&PROMPT[..9], &[8; 8]].concat());
    assert_eq!(machine.compute(other), 8, "the third block has other tokens");
}

#[test]
fn a_prompt_is_not_shared_over_new_weights() {
    let mut machine = Machine::chains(256);
    let first = machine.add(&PROMPT);
    machine.compute(first);
    machine.scheduler.set_policy_version(0).unwrap();
    let same = machine.add(&PROMPT);
    assert_eq!(machine.compute(same), 16, "the version is the same");
    machine.scheduler.set_policy_version(1).unwrap();
    let new = machine.add(&PROMPT);
    assert_eq!(machine.compute(new), 0);
    let newer = machine.add(&PROMPT);
    assert_eq!(machine.compute(newer), 16, "both have the new weights");
}

#[test]
fn what_two_versions_computed_together_is_not_shared() {
    // The old weights compute two blocks, or half of one, and the new ones the rest.
    for max_num_batched_tokens in [8, 2] {
        let mut machine = Machine::chains(max_num_batched_tokens);
        let old = machine.add(&PROMPT);
        machine.step();
        machine.scheduler.set_policy_version(1).unwrap();
        machine.compute(old);
        let new = machine.add(&PROMPT);
        assert_eq!(machine.compute(new), 0);
        let newer = machine.add(&PROMPT);
        assert_eq!(machine.compute(newer), 16);
    }
}

#[test]
fn blocks_that_end_inside_a_step_are_shared() {
    let mut machine = Machine::chains(3);
    let first = machine.add(&PROMPT);
    machine.compute(first);
    let same = machine.add(&PROMPT);
    assert_eq!(machine.compute(same), 16);
}

#[test]
fn a_plan_that_is_given_up_changes_no_tree() {
    let grow = |given_up_every: u32| {
        let limits = SchedulerConfig { max_num_seqs: 5, num_blocks: 40, ..Default::default() };
        let search = SearchConfig { width: 6, segment_len: 3, max_depth: 4, ..Default::default() };
        let mut machine = Machine::new(search, limits);
        for first in 1..4 {
            machine.add(&[first, 2, 3, 4, 5, 6]);
        }
        for step in 1.. {
            if machine.scheduler.is_done() {
                break;
            }
            if step % given_up_every == 0 {
                machine.scheduler.plan_step(&mut machine.arrays.buffers()).unwrap();
                machine.scheduler.drop_memory().unwrap();
                machine.scheduler.check().unwrap();
                assert_eq!(machine.scheduler.sampled_paths().count(), 0);
                let bytes = machine.scheduler.to_bytes().unwrap();
                machine.scheduler = Scheduler::from_bytes(&bytes).unwrap();
            }
            machine.step();
        }
        machine.scheduler.forest().columns()
    };
    let whole = grow(u32::MAX);
    for given_up_every in [1, 2, 7] {
        assert_eq!(format!("{:?}", grow(given_up_every)), format!("{whole:?}"));
    }
}

#[test]
fn a_path_that_finds_no_row_keeps_what_its_leader_computed_for_it() {
    let limits = SchedulerConfig { max_num_seqs: 1, ..SchedulerConfig::default() };
    let search = SearchConfig { initial_divergence: 2, ..SearchConfig::default() };
    let mut machine = Machine::new(search, limits);
    let tree = machine.add(&PROMPT);
    machine.step();
    let len = |path| machine.scheduler.forest().path(tree, path).unwrap().len();
    assert_eq!((len(PathId(0)), len(PathId(1))), (18, 17));
    assert_eq!(machine.computed(tree, PathId(1)), 17);
}

#[test]
fn a_path_keeps_what_it_shares_with_a_leader_that_is_pruned() {
    let search = SearchConfig { initial_divergence: 1, segment_len: 2, ..SearchConfig::default() };
    let mut machine = Machine::new(search, SchedulerConfig::default());
    let tree = machine.add(&PROMPT);
    machine.step();
    machine.step();
    assert_eq!(machine.scheduler.forest().tree(tree).unwrap().paths().len(), 2, "it has forked");
    machine.scheduler.prune(tree, PathId(0)).unwrap();
    assert_eq!(machine.computed(tree, PathId(1)), 18, "all but the token that is fed next");
}

#[test]
fn paths_that_have_lost_their_memory_compute_what_they_share_once() {
    let search = SearchConfig { initial_divergence: 2, ..SearchConfig::default() };
    let mut machine = Machine::new(search, SchedulerConfig::default());
    machine.add(&PROMPT);
    for _ in 0..3 {
        machine.step();
    }
    machine.scheduler.drop_memory().unwrap();
    let before = machine.scheduler.stats().fed_tokens;
    machine.step();
    machine.step();
    let fed = machine.scheduler.stats().fed_tokens - before;
    assert_eq!(fed, 20 + 1 + 3, "one path whole and its next token, three tokens of the other");
}
