//! What a snapshot says besides the forest: priorities, versions, the age of trees, scores.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::search::{BranchBy, BranchConfig, Verdicts};
use treepo::sim::{FakeModel, PlanArrays, TokenRule};
use treepo::{
    Path, PathId, SampledToken, Scheduler, SchedulerConfig, Search, SearchConfig, TokenKind,
    TreeId, Verdict,
};

/// Trees of two chains of segments of 2 tokens.
fn scheduler(limits: SchedulerConfig) -> Scheduler {
    let search = SearchConfig {
        width: 2,
        segment_len: 2,
        max_depth: 4,
        eos_token_ids: vec![9],
        ..SearchConfig::default()
    };
    let mut scheduler = Scheduler::new(search, limits, 1).unwrap();
    for key in 1..4 {
        scheduler.add_tree(key, &[1, 2, 3]).unwrap();
    }
    scheduler
}

/// Runs `num_steps` steps from an empty cache; the trees that each samples.
fn run(scheduler: &mut Scheduler, num_steps: usize) -> Vec<Vec<TreeId>> {
    let limits = *scheduler.config();
    let rule = TokenRule { vocab_size: 9, eos_token_ids: vec![9], eos_permille: 0 };
    let (blocks, size, rows) = (limits.num_blocks, limits.block_size, limits.max_num_seqs);
    let mut model = FakeModel::new(rule, blocks, size, rows);
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    let mut step = || {
        let sizes = scheduler.plan_step(&mut arrays.buffers()).unwrap();
        let trees = scheduler.sampled_paths().map(|(tree, _)| tree).collect();
        let tokens = model.run(&arrays.used(sizes)).unwrap();
        scheduler.commit_step(&tokens).unwrap();
        trees
    };
    (0..num_steps).map(|_| step()).collect()
}

fn again(scheduler: &Scheduler) -> Scheduler {
    Scheduler::from_bytes(&scheduler.to_bytes().unwrap()).unwrap()
}

#[test]
fn tokens_behind_a_snapshot_have_the_version_that_was_set_before_it() {
    let mut scheduler = scheduler(SchedulerConfig::default());
    scheduler.set_policy_version(7).unwrap();
    let mut other = again(&scheduler);
    run(&mut other, 1);
    let columns = other.forest().columns();
    let is_sampled = |kind: &u8| *kind == TokenKind::Sampled as u8;
    let tokens = columns.token_kind.iter().zip(&columns.token_version);
    let mut sampled = tokens.filter(|(kind, _)| is_sampled(kind)).peekable();
    assert!(sampled.peek().is_some());
    assert!(sampled.all(|(_, &version)| version == 7));
}

#[test]
fn a_tree_keeps_its_priority() {
    let limits = SchedulerConfig { max_num_seqs: 2, ..SchedulerConfig::default() };
    let mut scheduler = scheduler(limits);
    scheduler.set_priority(TreeId(2), 5).unwrap();
    assert_eq!(run(&mut again(&scheduler), 1)[0][0], TreeId(2));
}

#[test]
fn a_tree_keeps_its_turn() {
    let limits = SchedulerConfig { max_num_seqs: 2, age_bias: 0, ..SchedulerConfig::default() };
    let mut scheduler = scheduler(limits);
    assert_eq!(run(&mut scheduler, 2), [[TreeId(0); 2]; 2]);
    assert_eq!(run(&mut again(&scheduler), 1)[0][0], TreeId(1), "it has had no token yet");
}

#[test]
fn a_score_that_was_told_before_a_snapshot_counts_behind_it() {
    let branch = BranchConfig { by: BranchBy::Score, ..BranchConfig::default() };
    let search = SearchConfig {
        segment_len: 1,
        verdicts: Verdicts::Segments,
        branch,
        ..SearchConfig::default()
    };
    let mut search = Search::new(search, 1).unwrap();
    let tree = search.add_tree(1, &[1, 2, 3]).unwrap();
    let token = SampledToken { id: 5, logprob: -1.0, entropy: 1.0 };
    for path in [0, 1].map(PathId) {
        search.push_token(tree, path, token).unwrap();
    }
    let low = Verdict::Continue { score: -9.0 };
    search.report(tree, PathId(0), low).unwrap();
    let mut search = Search::from_bytes(&search.to_bytes().unwrap()).unwrap();
    search.report(tree, PathId(1), Verdict::Continue { score: 0.0 }).unwrap();
    let parents: Vec<_> =
        search.forest().trees()[0].paths()[2..].iter().map(Path::parent).collect();
    assert_eq!(parents, [Some(PathId(0)); 2], "lower scores get the budget");
}
