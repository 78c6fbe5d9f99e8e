//! Forecasts against runs of the slot-reading model.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::forecast::{Assumptions, forecast};
use treepo::sim::{FakeModel, PlanArrays, TokenRule};
use treepo::{FallbackFrom, Preset, Scheduler, SchedulerConfig, SearchConfig, Stats};

const EOS: u32 = 50;
const NUM_TREES: u32 = 1200;
const PROMPT_LEN: u32 = 5;

fn limits() -> SchedulerConfig {
    SchedulerConfig { num_blocks: 20_000, block_size: 4, ..SchedulerConfig::default() }
}

/// Decoded and returned tokens and forks a tree, and the peak of blocks, of a simulated run.
fn simulate(search: &SearchConfig, permille: u32, seed: u64) -> [f64; 4] {
    let limits = limits();
    let mut scheduler = Scheduler::new(search.clone(), limits, seed).unwrap();
    for t in 0..NUM_TREES {
        let prompt: Vec<u32> = (0..PROMPT_LEN).map(|i| t / EOS.pow(i.min(2)) % EOS).collect();
        scheduler.add_tree(u64::from(t), &prompt).unwrap();
    }
    let rule = TokenRule { vocab_size: EOS, eos_token_ids: vec![EOS], eos_permille: permille };
    let mut model = FakeModel::new(rule, limits.num_blocks, limits.block_size, limits.max_num_seqs);
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    loop {
        let sizes = scheduler.plan_step(&mut arrays.buffers()).unwrap();
        if sizes.num_rows == 0 {
            break;
        }
        let tokens = model.run(&arrays.used(sizes)).unwrap();
        scheduler.commit_step(&tokens).unwrap();
    }
    let Stats { decoded_tokens, branches, fallbacks, peak_blocks, .. } = scheduler.stats();
    let completions =
        scheduler.forest().trees().iter().flat_map(|tree| {
            tree.paths().iter().map(|path| u64::from(path.len() - tree.prompt_len))
        });
    let returned: u64 = completions.sum();
    let num_trees = f64::from(NUM_TREES);
    let per_tree = [decoded_tokens, returned, branches + fallbacks].map(|n| n as f64 / num_trees);
    [per_tree[0], per_tree[1], per_tree[2], peak_blocks as f64]
}

#[test]
fn a_forecast_is_within_two_percent_of_a_simulation() {
    let base = SearchConfig {
        width: 16,
        segment_len: 6,
        max_depth: 5,
        eos_token_ids: vec![EOS],
        ..SearchConfig::default()
    };
    let mut drawn = SearchConfig { max_branch_factor: Some(4), ..base.clone() };
    drawn.fallback.refill = treepo::search::Refill::Early;
    let mut flat = SearchConfig::flat(16, 30);
    flat.eos_token_ids = vec![EOS];
    for (name, search, permille) in
        [("default", base, 40u32), ("drawn factors", drawn, 60), ("flat", flat, 6)]
    {
        let survives = (1.0 - f64::from(permille) / 1000.0).powi(search.segment_len as i32);
        let rates = vec![1.0 - survives];
        let assumptions = Assumptions { rates, prompt_len: PROMPT_LEN, num_trees: NUM_TREES };
        let told = forecast(&search, limits(), &assumptions, 1).unwrap();
        let told = [
            told.decoded_tokens,
            told.returned_tokens,
            told.branches + told.fallbacks,
            told.peak_blocks,
        ];
        let seen = simulate(&search, permille, 2);
        for ((what, told), seen) in
            ["decoded", "returned", "forks", "peak"].iter().zip(told).zip(seen)
        {
            let error = (told - seen).abs() / seen.max(1e-9);
            println!("{name}: {what}: forecast {told:.2}, simulated {seen:.2}, {error:.4}");
            assert!(error < 0.02 || (told - seen).abs() < 1e-9, "{name}: {what} {told} {seen}");
        }
    }
}

#[test]
fn every_preset_can_be_forecast() {
    for preset in Preset::ALL {
        let search = preset.config();
        let assumptions = Assumptions { rates: vec![0.2, 0.3], prompt_len: 100, num_trees: 2 };
        let limits = SchedulerConfig { num_blocks: 200_000, ..SchedulerConfig::default() };
        let told = forecast(&search, limits, &assumptions, 0).unwrap();
        assert!(told.speedup_bound >= 1.0 - 1e-9, "{preset}: {told:?}");
        let has_all = search.fallback.from != FallbackFrom::Nothing;
        let missing = f64::from(search.width) - told.leaves;
        assert!(missing >= 0.0 && (missing == 0.0 || !has_all), "{preset}: {told:?}");
    }
}

#[test]
fn wrong_assumptions_are_named() {
    let search = SearchConfig::default();
    let of = |rates: &[f64], prompt_len, num_trees| {
        let assumptions = Assumptions { rates: rates.to_vec(), prompt_len, num_trees };
        forecast(&search, limits(), &assumptions, 0).unwrap_err().to_string()
    };
    assert!(of(&[], 1, 1).contains("rates"));
    assert!(of(&[0.5, 1.5], 1, 1).contains("1.5"));
    assert!(of(&[f64::NAN], 1, 1).contains("NaN"));
    assert!(of(&[0.5], 0, 1).contains("prompt_len"));
    assert!(of(&[0.5], 1, 0).contains("num_trees"));
}

#[test]
fn paths_end_where_the_rates_say_so_wherever_they_were_forked() {
    for preset in [Preset::Treerl, Preset::Treepo] {
        let mut search = SearchConfig { eos_token_ids: vec![2, 3], ..preset.config() };
        search.stop.repetition = treepo::search::Repetition::Tokens;
        let assumptions = Assumptions { rates: vec![1.0], prompt_len: 4, num_trees: 8 };
        let limits = SchedulerConfig { num_blocks: 400_000, ..SchedulerConfig::default() };
        let told = forecast(&search, limits, &assumptions, 0).unwrap();
        assert!((told.leaves_stop - told.leaves).abs() < 1e-9, "{preset}: {told:?}");
        assert!(told.decoded_tokens > told.leaves, "{preset}: only ends are sampled");
    }
}
