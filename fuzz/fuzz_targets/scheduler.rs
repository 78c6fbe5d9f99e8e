//! The scheduler under any configuration, any limits and any order of calls.
#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use treepo::search::Opportunistic;
use treepo::sim::oracle;
use treepo_fuzz::Choices;
use treepo_fuzz::machine::{Machine, SEED, rule};

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices(Unstructured::new(data));
    let search = choices.search_config(20);
    let limits = choices.limits(9 + 20);
    let Some(mut machine) = Machine::new(search.clone(), limits) else { return };
    while !choices.is_over() {
        machine.call(&mut choices);
    }
    machine.finish();
    let forest = machine.scheduler.forest();
    oracle::check_tokens(forest, &rule(), SEED).expect("T6");
    if machine.is_undisturbed && search.opportunistic == Opportunistic::Off {
        let expected = treepo_fuzz::grow(&search, &machine.prompts);
        oracle::check_same_trees(forest, &expected).expect("S4");
    }
});
