//! The scheduler at scale: 100,000 paths in a tree and in a forest, 100,000 tokens in a path; and how
//! long rows wait for rounds.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::{Forest, PlanArrays, SampledToken, Scheduler, SchedulerConfig, SearchConfig, Stats};

const EOS: u32 = 0;

/// Grows trees whose tokens end a path with this probability.
fn run(
    search: &SearchConfig,
    limits: SchedulerConfig,
    num_trees: u32,
    prompt_len: u32,
    hazard: f64,
) -> (Forest, Stats) {
    let search = SearchConfig { eos_token_ids: vec![EOS], ..search.clone() };
    let mut scheduler = Scheduler::new(search, limits, 0).unwrap();
    for t in 0..num_trees {
        let prompt: Vec<u32> = (0..prompt_len).map(|i| 1 + (7 * i + t) % 1000).collect();
        scheduler.add_tree(u64::from(t), &prompt).unwrap();
    }
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    let mut tokens = Vec::new();
    while !scheduler.is_done() {
        let sizes = scheduler.plan_step(&mut arrays.buffers()).unwrap();
        tokens.clear();
        tokens.extend(arrays.uniforms[..sizes.num_samples].iter().map(|&uniform| {
            let id = if uniform < hazard { EOS } else { 7 };
            SampledToken { id, logprob: -1.0, entropy: 1.0 }
        }));
        scheduler.commit_step(&tokens).unwrap();
    }
    scheduler.check().unwrap();
    let stats = scheduler.stats();
    (scheduler.into_forest(), stats)
}

fn limits(num_blocks: u32, max_num_seqs: u32) -> SchedulerConfig {
    SchedulerConfig { num_blocks, max_num_seqs, ..SchedulerConfig::default() }
}

#[test]
fn a_tree_may_have_a_hundred_thousand_paths() {
    let search = SearchConfig {
        width: 100_000,
        max_depth: 2,
        segment_len: 4,
        initial_divergence: 100_000,
        ..SearchConfig::default()
    };
    let (forest, stats) = run(&search, limits(300_000, 4096), 1, 10, 0.1);
    assert_eq!(forest.num_paths(), 100_000);
    assert_eq!(stats.recomputed_tokens, 0);
}

#[test]
fn a_forest_may_have_a_hundred_thousand_paths() {
    let search =
        SearchConfig { width: 16, max_depth: 3, segment_len: 4, ..SearchConfig::default() };
    let (forest, _) = run(&search, limits(50_000, 1024), 6250, 8, 0.02);
    assert_eq!(forest.num_paths(), 100_000);
}

#[test]
fn a_path_may_have_a_hundred_thousand_tokens() {
    let search =
        SearchConfig { width: 3, max_depth: 100, segment_len: 1000, ..SearchConfig::default() };
    let (forest, stats) = run(&search, limits(20_000, 8), 1, 16, 0.0);
    let longest = forest.trees()[0].paths().iter().map(treepo::Path::len).max();
    assert_eq!(longest, Some(100_016));
    assert_eq!(stats.recomputed_tokens, 0);
}

#[test]
fn rows_hardly_wait_for_rounds_with_many_trees() {
    for num_trees in [32, 64, 128] {
        for max_num_seqs in [64, 128, 256, 512] {
            for (segment_len, max_depth, hazard) in [(64, 14, 0.003), (32, 7, 0.01), (16, 8, 0.0)] {
                for num_blocks in [4_000, 40_000] {
                    let shape = SearchConfig {
                        width: 16,
                        segment_len,
                        max_depth,
                        ..SearchConfig::default()
                    };
                    let limits = limits(num_blocks, max_num_seqs);
                    let (_, stats) = run(&shape, limits, num_trees, 64, hazard);
                    let waits = stats.round_wait_row_steps as f64 / stats.row_steps as f64;
                    println!(
                        "{num_trees} trees, {max_num_seqs} rows, {max_depth} x {segment_len}, \
                         hazard {hazard}, {num_blocks} blocks: {:.3} %",
                        100.0 * waits
                    );
                    assert!(waits <= 0.02, "{waits}");
                }
            }
        }
    }
}
