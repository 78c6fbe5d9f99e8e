//! What planning and committing allocate: nothing, once the buffers have their size.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod counting;

use counting::count;
use treepo::search::{BranchBy, Prefer, PruneBy, PrunedLeaves, Refill, Repetition};
use treepo::{PlanArrays, SampledToken, Scheduler, SchedulerConfig, SearchConfig};

const EOS: u32 = 0;
const TREES: u64 = 12;
const WARM_UPS: u64 = 12;

/// Grows a batch of trees to their ends; returns what planning and committing allocated.
fn run_batch(scheduler: &mut Scheduler, arrays: &mut PlanArrays, batch: u64) -> usize {
    for tree in 0..TREES {
        let key = batch * TREES + tree;
        let prompt: Vec<u32> = (0..20 + key as u32 % 7).map(|i| 1 + (i * 3) % 40).collect();
        scheduler.add_tree(key, &prompt).unwrap();
    }
    let (mut num_allocations, mut tokens) = (0, Vec::with_capacity(64));
    while !scheduler.is_done() {
        let (planned, sizes) = count(|| scheduler.plan_step(&mut arrays.buffers()));
        let sizes = sizes.unwrap();
        tokens.clear();
        for uniform in &arrays.uniforms[..sizes.num_samples] {
            let id = if *uniform < 0.02 { EOS } else { 1 + (uniform * 1e6) as u32 % 40 };
            let logprob = -((uniform * 1e4).fract() as f32);
            tokens.push(SampledToken { id, logprob, entropy: logprob.abs() });
        }
        let (committed, result) = count(|| scheduler.commit_step(&tokens));
        result.unwrap();
        num_allocations += planned + committed;
        scheduler.check().unwrap();
    }
    assert_eq!(scheduler.take_finished().len() as u64, TREES);
    num_allocations
}

fn allocations_after_warm_up(search: SearchConfig, num_blocks: u32) -> usize {
    let limits = SchedulerConfig {
        num_blocks,
        block_size: 4,
        max_num_seqs: 48,
        max_num_batched_tokens: 64,
        ..SchedulerConfig::default()
    };
    let mut scheduler = Scheduler::new(search, limits, 3).unwrap();
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    for batch in 0..WARM_UPS {
        run_batch(&mut scheduler, &mut arrays, batch);
    }
    let allocated = run_batch(&mut scheduler, &mut arrays, WARM_UPS);
    let stats = scheduler.stats();
    assert!(stats.branches > 0 && stats.fallbacks > 0 && stats.block_copies > 0, "{stats:?}");
    allocated
}

fn search() -> SearchConfig {
    SearchConfig {
        width: 12,
        segment_len: 8,
        max_depth: 5,
        eos_token_ids: vec![EOS],
        ..SearchConfig::default()
    }
}

#[test]
fn a_wide_pool_allocates_nothing() {
    assert_eq!(allocations_after_warm_up(search(), 4000), 0);
}

#[test]
fn eviction_and_preemption_allocate_nothing() {
    assert_eq!(allocations_after_warm_up(search(), 60), 0);
}

#[test]
fn the_other_rules_allocate_nothing() {
    let mut weighted = search();
    weighted.branch.by = BranchBy::SegmentEntropy;
    weighted.branch.prefer = Prefer::High;
    weighted.fallback.refill = Refill::Early;
    weighted.stop.repetition = Repetition::Tokens;
    (weighted.stop.repetition_len, weighted.stop.repetition_count) = (2, 4);
    weighted.max_branch_factor = Some(3);
    assert_eq!(allocations_after_warm_up(weighted, 300), 0);

    let mut pruned = search();
    pruned.prune.by = PruneBy::Logprob;
    (pruned.prune.window, pruned.prune.threshold) = (4, -0.75);
    pruned.prune.leaves = PrunedLeaves::AreReplaced;
    assert_eq!(allocations_after_warm_up(pruned.clone(), 300), 0);
    pruned.prune.warmup_leaves = 3;
    assert_eq!(allocations_after_warm_up(pruned, 300), 0);
}

#[test]
fn changing_priorities_for_ever_takes_no_memory() {
    let limits = SchedulerConfig { max_num_seqs: 1, ..SchedulerConfig::default() };
    let mut scheduler = Scheduler::new(search(), limits, 0).unwrap();
    let trees = [1, 2, 3].map(|key| scheduler.add_tree(key, &[1]).unwrap());
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    scheduler.plan_step(&mut arrays.buffers()).unwrap();
    scheduler.commit_step(&[SampledToken { id: 1, logprob: -1.0, entropy: 1.0 }]).unwrap();
    let mut turn = |priority: i32| {
        for tree in trees {
            scheduler.set_priority(tree, priority % 3).unwrap();
        }
    };
    (0..200).for_each(&mut turn);
    let (num_allocations, ()) = count(|| (0..10_000).for_each(&mut turn));
    assert_eq!(num_allocations, 0);
}
