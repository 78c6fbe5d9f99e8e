//! A half-grown forest with its scheduler goes on from bytes as it would have gone on.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use treepo::search::{Opportunistic, Verdicts};
use treepo::sim::{FakeModel, PlanArrays, Scenario, oracle};
use treepo::{Forest, Scheduler, Search, TokenTexts};

/// Continuations from bytes in one run: each loses all keys and values, so that a run of nothing
/// else would compute the same tokens for ever.
const MAX_CUTS: usize = 6;

fn scheduler(scenario: &Scenario) -> Scheduler {
    let search = scenario.search.clone();
    let mut scheduler = Scheduler::new(search, scenario.limits, scenario.seed).unwrap();
    scheduler.set_texts(TokenTexts::new(&scenario.caller.pieces)).unwrap();
    scheduler
}

/// Runs a scenario; the state after each step is that of its bytes. At every `every`-th step another
/// scheduler goes on from them, with an empty cache.
fn run(scenario: &Scenario, every: Option<usize>) -> Forest {
    let limits = scenario.limits;
    let mut scheduler = scheduler(scenario);
    let model = || {
        let (blocks, size, rows) = (limits.num_blocks, limits.block_size, limits.max_num_seqs);
        FakeModel::new(scenario.rule.clone(), blocks, size, rows)
    };
    let mut cache = model();
    for (key, prompt) in &scenario.prompts {
        scheduler.add_tree(*key, prompt).unwrap();
    }
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    let mut num_cuts = 0;
    for step in 1..20_000 {
        let sizes = scheduler.plan_step(&mut arrays.buffers()).unwrap();
        if sizes.num_rows == 0 {
            return scheduler.into_forest();
        }
        let tokens = cache.run(&arrays.used(sizes)).unwrap();
        scheduler.commit_step(&tokens).unwrap();
        cache.poison(|block| scheduler.memory().pool().count(block) == 0);
        let Some(every) = every else { continue };
        let bytes = scheduler.to_bytes().unwrap();
        let other = Scheduler::from_bytes(&bytes).unwrap();
        assert_eq!(other.to_bytes().unwrap(), bytes, "the same state");
        if step % every == 0 && num_cuts < MAX_CUTS {
            num_cuts += 1;
            scheduler = other;
            cache = model();
        }
    }
    panic!("the run does not end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn s4_a_forest_does_not_depend_on_where_it_was_cut(seed in 0u64..100_000, every in 1usize..9) {
        let scenario = Scenario::draw(seed);
        let is_judged = scenario.search.verdicts == Verdicts::Segments;
        prop_assume!(!is_judged && scenario.search.opportunistic == Opportunistic::Off);
        let whole = run(&scenario, None);
        let cut = run(&scenario, Some(every));
        oracle::check_same_trees(&cut, &whole).unwrap();
    }

    #[test]
    fn damaged_bytes_are_refused(
        seed in 0u64..1000, place in any::<prop::sample::Index>(), mask in 1u8..=255,
    ) {
        let scenario = Scenario::draw(seed);
        let mut scheduler = scheduler(&scenario);
        for (key, prompt) in &scenario.prompts {
            scheduler.add_tree(*key, prompt).unwrap();
        }
        let bytes = scheduler.to_bytes().unwrap();
        let place = place.index(bytes.len());
        prop_assert!(Scheduler::from_bytes(&bytes[..place]).is_err());
        let mut damaged = bytes.clone();
        damaged[place] ^= mask;
        prop_assert!(Scheduler::from_bytes(&damaged).is_err());
        prop_assert!(Search::from_bytes(&bytes).is_err(), "a scheduler's bytes are no search's");
    }
}

#[test]
fn an_open_plan_has_to_be_committed_first() {
    let scenario = Scenario::draw(3);
    let mut scheduler = scheduler(&scenario);
    scheduler.add_tree(scenario.prompts[0].0, &scenario.prompts[0].1).unwrap();
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    scheduler.plan_step(&mut arrays.buffers()).unwrap();
    assert!(scheduler.to_bytes().is_err());
}
