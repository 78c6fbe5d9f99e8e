//! What bad input leads to: an error that names it, and nothing changed.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::search::{
    BranchBy, Opportunistic, PruneBy, Repetition, TokenTexts, Total, Verdict, Verdicts,
};
use treepo::sim::PlanArrays;
use treepo::{
    Error, FinishReason, Forest, ForkOrigin, PathId, SampledToken, Scheduler, SchedulerConfig,
    Search, SearchConfig, TreeId,
};

fn token(id: u32) -> SampledToken {
    SampledToken { id, logprob: -0.5, entropy: 0.7 }
}

fn search_config() -> SearchConfig {
    SearchConfig { width: 4, segment_len: 2, max_depth: 2, ..SearchConfig::default() }
}

fn scheduler(num_blocks: u32) -> Scheduler {
    let limits = SchedulerConfig { num_blocks, block_size: 2, ..SchedulerConfig::default() };
    Scheduler::new(search_config(), limits, 0).unwrap()
}

fn invalid<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error::InvalidInput(_)))
}

fn bad_field<T>(result: &Result<T, Error>) -> &'static str {
    match result {
        Err(Error::InvalidConfig { field, .. }) => field,
        _ => "no field",
    }
}

#[test]
fn a_config_value_out_of_range_is_named() {
    let config = SearchConfig { width: 0, ..search_config() };
    let error = Search::new(config, 0).unwrap_err();
    assert_eq!(error.to_string(), "width: must be at least 1, got 0");
    let config = SearchConfig { segment_len: 0, ..search_config() };
    assert_eq!(bad_field(&Search::new(config, 0)), "segment_len");
    let config = SearchConfig { max_completion_len: Some(0), ..search_config() };
    assert_eq!(bad_field(&Search::new(config, 0)), "max_completion_len");
    let limits = SchedulerConfig { block_size: 0, ..SchedulerConfig::default() };
    assert_eq!(bad_field(&Scheduler::new(search_config(), limits, 0)), "block_size");
    let limits = SchedulerConfig { num_blocks: 1, ..SchedulerConfig::default() };
    assert_eq!(bad_field(&Scheduler::new(search_config(), limits, 0)), "num_blocks");
}

/// The message for a default configuration with this change.
fn refusal(change: impl Fn(&mut SearchConfig)) -> String {
    let mut config = SearchConfig::default();
    change(&mut config);
    let error = Search::new(config.clone(), 0).err();
    assert_eq!(error, config.check().err());
    error.map_or_else(|| "accepted".into(), |error| error.to_string())
}

#[test]
fn every_count_has_its_least_value() {
    type Change = fn(&mut SearchConfig);
    let least = |field: &str, least: u32| format!("{field}: must be at least {least}, got 0");
    let changes: [(&str, Change); 18] = [
        ("segment_len", |c| c.segment_len = 0),
        ("max_depth", |c| c.max_depth = 0),
        ("branch_factor", |c| c.branch_factor = 0),
        ("initial_divergence", |c| c.initial_divergence = 0),
        ("max_completion_len", |c| c.max_completion_len = Some(0)),
        ("max_model_len", |c| c.max_model_len = 0),
        ("branch.num_positions", |c| c.branch.num_positions = 0),
        ("branch.copies", |c| c.branch.copies = 0),
        ("budget.max_tokens", |c| c.budget.max_tokens = 0),
        ("budget.min_width", |c| c.budget.min_width = 0),
        ("fallback.window", |c| c.fallback.window = Some(0)),
        ("fallback.max_windows", |c| c.fallback.max_windows = Some(0)),
        ("fallback.copies", |c| c.fallback.copies = Some(0)),
        ("stop.repetition_len", |c| c.stop.repetition_len = 0),
        ("stop.repetition_window", |c| c.stop.repetition_window = 0),
        ("prune.window", |c| c.prune.window = 0),
        ("step_tokens", |c| c.step_tokens = 0),
        ("width", |c| c.width = 0),
    ];
    for (field, change) in changes {
        assert_eq!(refusal(change), least(field, 1));
    }
    assert_eq!(refusal(|c| c.stop.repetition_count = 0), least("stop.repetition_count", 2));
    assert_eq!(refusal(|c| c.width = 1), "accepted");
}

#[test]
fn what_is_made_at_once_has_a_bound() {
    let most =
        |field: &str, most: u32, got: u32| format!("{field}: must be at most {most}, got {got}");
    let huge = u32::MAX;
    assert_eq!(refusal(|c| c.width = huge), most("width", 1 << 24, huge));
    assert_eq!(
        refusal(|c| c.initial_divergence = 1_000_001),
        most("initial_divergence", 1_000_000, 1_000_001)
    );
    assert_eq!(
        refusal(|c| c.max_initial_divergence = Some(huge)),
        most("max_initial_divergence", 1_000_000, huge)
    );
}

#[test]
fn numbers_that_the_columns_cannot_hold_are_refused_where_they_enter() {
    const TOO_LARGE: u32 = 1 << 31;
    let mut forest = Forest::new();
    assert!(invalid(&forest.add_tree(0, 0, &[1, TOO_LARGE])));
    let tree = forest.add_tree(0, 0, &[1]).unwrap();
    assert!(invalid(&forest.push_token(tree, PathId(0), token(TOO_LARGE), 0)));
    assert!(invalid(&forest.push_token(tree, PathId(0), token(1), TOO_LARGE)));
    assert!(invalid(&forest.push_given(tree, PathId(0), &[TOO_LARGE])));
    let mut search = Search::new(SearchConfig::default(), 0).unwrap();
    assert!(invalid(&search.set_policy_version(TOO_LARGE)));
    search.set_policy_version(TOO_LARGE - 1).unwrap();
    search.add_tree(0, &[TOO_LARGE - 1]).unwrap();
    search.push_token(tree, PathId(0), token(TOO_LARGE - 1)).unwrap();
    let again = Search::from_bytes(&search.to_bytes().unwrap()).unwrap();
    let columns = |search: &Search| format!("{:?}", search.forest().columns());
    assert_eq!(columns(&again), columns(&search));
}

#[test]
fn a_report_without_a_token_is_refused() {
    let mut search = Search::new(search_config(), 0).unwrap();
    let tree = search.add_tree(0, &[1]).unwrap();
    let error = search.complete_segment(tree, PathId(0), &[]).unwrap_err();
    assert_eq!(error.to_string(), "path 0 of tree 0 got no token");
}

#[test]
fn an_empty_list_of_texts_is_none() {
    let mut config = SearchConfig::default();
    config.stop.strings = vec!["x".into()];
    let mut search = Search::new(config, 0).unwrap();
    assert!(search.set_texts(TokenTexts::new([""; 0])).is_err());
}

#[test]
fn a_number_below_the_one_that_it_builds_on_is_refused_with_the_remedy() {
    let message = refusal(|c| c.max_branch_factor = Some(1));
    assert_eq!(
        message,
        "max_branch_factor: must be at least branch_factor (2), got 1; raise it or lower \
         branch_factor"
    );
    assert!(refusal(|c| c.max_initial_divergence = Some(1)).starts_with("max_initial_divergence:"));
    let total = |max_tokens| {
        refusal(|c| (c.budget.total, c.budget.max_tokens) = (Total::UniqueTokens, max_tokens))
    };
    assert!(total(63).starts_with("budget.max_tokens: must be at least segment_len (64), got 63"));
    assert_eq!(total(64), "accepted");
    assert_eq!(refusal(|c| c.budget.max_tokens = 1), "accepted", "it is not used");
    let shared = refusal(|c| {
        (c.opportunistic, c.step_tokens) = (Opportunistic::StepTokens, 63);
    });
    assert!(shared.starts_with("step_tokens: must be at least segment_len (64), got 63"));
    assert_eq!(refusal(|c| c.step_tokens = 1), "accepted", "it is not used");
}

#[test]
fn temperatures_fractions_and_thresholds_have_their_ranges() {
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let message = refusal(|c| c.branch.temperature = bad);
        assert!(message.starts_with("branch.temperature: must be above 0 and finite"));
        let message = refusal(|c| c.branch.final_temperature = bad);
        assert!(message.starts_with("branch.final_temperature:"), "{bad}: {message}");
    }
    for bad in [-0.1, 1.1, f32::NAN] {
        let expected = format!("progress: must be from 0 to 1, got {bad}");
        assert_eq!(refusal(|c| c.progress = bad), expected);
        assert!(refusal(|c| c.prune.warmup_quantile = bad).starts_with("prune.warmup_quantile:"));
    }
    for edge in [0.0, 1.0] {
        assert_eq!(refusal(|c| (c.progress, c.prune.warmup_quantile) = (edge, edge)), "accepted");
    }
    assert!(refusal(|c| c.branch.threshold = f32::NAN).starts_with("branch.threshold:"));
    assert!(refusal(|c| c.prune.threshold = f32::INFINITY).starts_with("prune.threshold:"));
}

#[test]
fn a_rule_that_lacks_what_it_works_on_is_refused() {
    let scores = "is score, but nobody gives scores; set verdicts to segments";
    assert_eq!(refusal(|c| c.branch.by = BranchBy::Score), format!("branch.by: {scores}"));
    assert_eq!(refusal(|c| c.prune.by = PruneBy::Score), format!("prune.by: {scores}"));
    let judged = refusal(|c| {
        (c.prune.by, c.verdicts) = (PruneBy::Score, Verdicts::Segments);
    });
    assert_eq!(judged, "accepted");
    let empty = refusal(|c| c.stop.strings = vec!["a".into(), String::new()]);
    assert!(empty.starts_with("stop.strings: got an empty string"), "{empty}");
}

#[test]
fn rules_about_text_need_the_texts_before_the_first_tree() {
    let mut config = search_config();
    config.stop.repetition = Repetition::Bytes;
    let mut search = Search::new(config, 0).unwrap();
    assert_eq!(bad_field(&search.add_tree(0, &[1])), "stop.repetition");
    assert_eq!(search.forest().trees().len(), 0);
    search.set_texts(TokenTexts::new(["a", "b"])).unwrap();
    search.add_tree(0, &[1]).unwrap();
    let late = search.set_texts(TokenTexts::new(["a", "b"]));
    assert!(matches!(late, Err(Error::InvalidInput(_))));
}

#[test]
fn ids_that_do_not_exist_are_errors_and_never_a_panic() {
    let mut search = Search::new(search_config(), 0).unwrap();
    let tree = search.add_tree(0, &[1, 2]).unwrap();
    let before = format!("{search:?}");
    for (tree, path) in [(tree, PathId(2)), (TreeId(1), PathId(0)), (TreeId(u32::MAX), PathId(9))] {
        assert!(!search.is_tree_done(TreeId(1)));
        assert!(invalid(&search.push_token(tree, path, token(1))));
        assert!(invalid(&search.complete_segment(tree, path, &[token(1)])));
        assert!(invalid(&search.report(tree, path, Verdict::Stop)));
        assert!(invalid(&search.fork(tree, path, 2).map(drop)));
        assert!(invalid(&search.prune(tree, path)));
        assert!(invalid(&search.prune_subtree(tree, path, 2).map(drop)));
        assert!(invalid(&search.rewind(tree, path, 2).map(drop)));
    }
    assert!(search.abort_tree(TreeId(1)).is_err());
    assert_eq!(before, format!("{search:?}"));
}

#[test]
fn a_caller_forks_only_where_something_can_be_sampled() {
    let config = SearchConfig { width: 9, eos_token_ids: vec![9], ..search_config() };
    let mut search = Search::new(config, 0).unwrap();
    let tree = search.add_tree(0, &[1, 2]).unwrap();
    search.push_token(tree, PathId(0), token(9)).unwrap();
    let message = |result: Result<PathId, Error>| result.unwrap_err().to_string();
    assert!(message(search.fork(tree, PathId(0), 1)).contains("lies outside 2..=3"));
    assert!(message(search.fork(tree, PathId(0), 4)).contains("lies outside 2..=3"));
    assert!(message(search.fork(tree, PathId(0), 3)).contains("is finished there"));
    assert!(message(search.rewind(tree, PathId(0), 2)).contains("is finished (Stop)"));
    assert!(search.forest().trees()[0].is_replayable, "nothing has changed");
    assert!(search.fork(tree, PathId(0), 2).is_ok());
    search.check().unwrap();
}

#[test]
fn a_score_that_is_not_finite_leaves_the_path_waiting() {
    let config = SearchConfig { verdicts: Verdicts::Segments, ..search_config() };
    let mut search = Search::new(config, 0).unwrap();
    let tree = search.add_tree(0, &[1]).unwrap();
    search.complete_segment(tree, PathId(0), &[token(1); 2]).unwrap();
    let result = search.report(tree, PathId(0), Verdict::Continue { score: f32::NAN });
    let message = result.unwrap_err().to_string();
    assert_eq!(message, "score of path 0 of tree 0 is NaN; report a finite one");
    assert_eq!(search.ended_segments().collect::<Vec<_>>(), [(tree, PathId(0))]);
    assert!(search.report(tree, PathId(1), Verdict::Stop).is_err(), "its segment runs");
}

#[test]
fn a_pool_that_cannot_hold_one_path_says_how_many_blocks_are_missing() {
    // 3 prompt tokens and 4 of completion are 4 blocks of 2
    let error = scheduler(4).add_tree(0, &[1, 2, 3]).unwrap_err();
    assert_eq!(error, Error::PoolTooSmall { needed: 4, available: 3 });
    assert!(scheduler(5).add_tree(0, &[1, 2, 3]).is_ok());
}

#[test]
fn a_refused_tree_leaves_nothing_behind() {
    let mut scheduler = scheduler(4);
    assert!(scheduler.add_tree(0, &[1, 2, 3]).is_err());
    assert!(scheduler.add_tree(0, &[]).is_err());
    assert!(scheduler.is_done());
    assert_eq!(scheduler.forest().num_paths(), 0);
    assert_eq!(scheduler.add_tree(0, &[1]).unwrap(), TreeId(0));
}

#[test]
fn a_prompt_without_room_for_a_completion_is_refused() {
    let config = SearchConfig { max_model_len: 3, ..search_config() };
    let mut search = Search::new(config, 0).unwrap();
    let error = search.add_tree(0, &[1, 2, 3]).unwrap_err();
    assert_eq!(error, Error::PromptTooLong { prompt_len: 3, max_model_len: 3 });
    assert!(search.add_tree(0, &[1, 2]).is_ok());
}

#[test]
fn a_short_plan_array_is_named_and_the_plan_can_be_made_again() {
    let mut scheduler = scheduler(20);
    scheduler.add_tree(0, &[1, 2, 3]).unwrap();
    let before = format!("{scheduler:?}");
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    let full = arrays.uniforms.clone();
    arrays.uniforms.truncate(255);
    let error = scheduler.plan_step(&mut arrays.buffers()).unwrap_err();
    assert_eq!(error, Error::BufferTooSmall { array: "uniforms", needed: 256, given: 255 });
    assert_eq!(before, format!("{scheduler:?}"));
    arrays.uniforms = full;
    assert_eq!(scheduler.plan_step(&mut arrays.buffers()).unwrap().num_samples, 2);
}

#[test]
fn a_plan_is_committed_once_and_before_the_next() {
    let mut scheduler = scheduler(20);
    scheduler.add_tree(0, &[1, 2, 3]).unwrap();
    assert!(matches!(scheduler.commit_step(&[]), Err(Error::InvalidInput(_))));
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    scheduler.plan_step(&mut arrays.buffers()).unwrap();
    assert!(matches!(scheduler.plan_step(&mut arrays.buffers()), Err(Error::InvalidInput(_))));
    assert!(matches!(scheduler.abort_tree(TreeId(0)), Err(Error::InvalidInput(_))));
    assert!(matches!(scheduler.commit_step(&[token(1)]), Err(Error::InvalidInput(_))));
    scheduler.commit_step(&[token(1), token(2)]).unwrap();
    assert!(matches!(scheduler.commit_step(&[token(1)]), Err(Error::InvalidInput(_))));
}

#[test]
fn a_commit_with_a_nan_changes_nothing_and_can_be_repeated() {
    let mut scheduler = scheduler(20);
    scheduler.add_tree(0, &[1, 2, 3]).unwrap();
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    scheduler.plan_step(&mut arrays.buffers()).unwrap();
    let before = format!("{scheduler:?}");
    let bad = SampledToken { logprob: f32::NAN, ..token(1) };
    let Err(Error::NotFinite { tree, path, what }) = scheduler.commit_step(&[token(1), bad]) else {
        panic!("a NaN was taken");
    };
    assert_eq!((tree, path, what.as_str()), (TreeId(0), PathId(1), "log-probability is NaN"));
    let bad = SampledToken { entropy: f32::INFINITY, ..token(1) };
    assert!(matches!(scheduler.commit_step(&[bad, token(1)]), Err(Error::NotFinite { .. })));
    assert_eq!(before, format!("{scheduler:?}"));
    scheduler.commit_step(&[token(1), token(2)]).unwrap();
    scheduler.check().unwrap();
}

#[test]
fn an_idle_scheduler_plans_nothing() {
    let mut scheduler = scheduler(20);
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    assert_eq!(scheduler.plan_step(&mut arrays.buffers()).unwrap().num_rows, 0);
    assert!(scheduler.commit_step(&[]).is_err());
}

#[test]
fn a_segment_that_goes_on_behind_its_end_is_refused_whole() {
    let config = SearchConfig { eos_token_ids: vec![9], ..search_config() };
    let mut search = Search::new(config, 0).unwrap();
    let tree = search.add_tree(0, &[1]).unwrap();
    for tokens in [vec![token(1); 3], vec![token(9), token(1)]] {
        let result = search.complete_segment(tree, PathId(0), &tokens);
        assert!(matches!(result, Err(Error::InvalidInput(_))));
    }
    assert!(search.complete_segment(tree, PathId(7), &[token(1)]).is_err());
    assert!(search.complete_segment(TreeId(1), PathId(0), &[token(1)]).is_err());
    let nan = SampledToken { entropy: f32::NAN, ..token(1) };
    assert!(search.complete_segment(tree, PathId(0), &[token(1), nan]).is_err());
    assert_eq!(search.forest().num_tokens(), 1);
    search.complete_segment(tree, PathId(0), &[token(9)]).unwrap();
    assert!(search.push_token(tree, PathId(0), token(1)).is_err());
}

#[test]
fn a_finished_path_takes_no_token_and_no_second_reason() {
    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 0, &[1]).unwrap();
    forest.push_token(tree, PathId(0), token(1), 0).unwrap();
    forest.finish(tree, PathId(0), FinishReason::Stop).unwrap();
    assert!(forest.push_token(tree, PathId(0), token(1), 0).is_err());
    assert!(forest.push_given(tree, PathId(0), &[1]).is_err());
    assert!(forest.mark(tree, PathId(0)).is_err());
    assert!(forest.finish(tree, PathId(0), FinishReason::Abort).is_err());
    assert!(forest.fork(tree, PathId(0), 0, ForkOrigin::Caller).is_err(), "inside the prompt");
    assert!(forest.fork(tree, PathId(0), 3, ForkOrigin::Caller).is_err(), "behind the end");
    assert!(forest.fork(tree, PathId(0), 2, ForkOrigin::Caller).is_ok());
}

#[test]
fn without_fallback_a_tree_ends_with_fewer_leaves() {
    let config = SearchConfig { eos_token_ids: vec![9], ..without_fallback(search_config()) };
    let mut search = Search::new(config, 0).unwrap();
    let tree = search.add_tree(0, &[1]).unwrap();
    while let Some(segment) = search.segments().first().copied() {
        search.push_token(tree, segment.path, token(9)).unwrap();
    }
    assert!(search.is_done());
    assert_eq!(search.forest().num_paths(), 2);
}

#[test]
fn an_aborted_tree_is_marked_as_not_replayable() {
    let mut search = Search::new(SearchConfig::default(), 0).unwrap();
    let kept = search.add_tree(1, &[5]).unwrap();
    let aborted = search.add_tree(2, &[5]).unwrap();
    search.abort_tree(aborted).unwrap();
    assert!(search.forest().tree(kept).unwrap().is_replayable);
    assert!(!search.forest().tree(aborted).unwrap().is_replayable);
    let copy = treepo::Forest::from_columns(&search.forest().columns()).unwrap();
    assert_eq!(copy.columns().tree_replayable, [1, 0]);
}

fn without_fallback(config: SearchConfig) -> SearchConfig {
    let mut config = config;
    config.fallback.from = treepo::FallbackFrom::Nothing;
    config
}
