//! Snapshots: arbitrary bytes are refused; bytes that were altered behind the configurations, with
//! a checksum that fits, are refused or give a scheduler that keeps its laws.
#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use treepo::search::Opportunistic;
use treepo::{Scheduler, Search};
use treepo_fuzz::Choices;
use treepo_fuzz::machine::Machine;

/// Bytes before the content: magic, version, kind.
const HEADER_LEN: usize = 9;

/// The largest number of 32 and of 64 bits, as the content writes them.
const LARGEST: [&[u8]; 2] =
    [&[255, 255, 255, 255, 15], &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]];

/// Puts the checksum of all before it behind the bytes.
fn seal(bytes: &mut Vec<u8>) {
    let checksum = crc32fast::hash(bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
}

/// Where the content behind both configurations begins: they say how much memory there is.
fn start_of_state(scheduler: &Scheduler) -> usize {
    let limits = postcard::to_allocvec(scheduler.config()).expect("numbers");
    let search = postcard::to_allocvec(scheduler.search().config()).expect("numbers");
    HEADER_LEN + limits.len() + search.len()
}

fn alter(bytes: &mut Vec<u8>, start: usize, choices: &mut Choices<'_>) {
    for _ in 0..choices.between(1, 4) {
        let place = start + choices.below((bytes.len() - start) as u32) as usize;
        match choices.below(8) {
            0 => bytes.truncate(place.max(start + 1)),
            1 => bytes.insert(place, choices.below(256) as u8),
            2 => drop(bytes.remove(place)),
            3 => bytes[place] ^= 1 << choices.below(8),
            4 => drop(bytes.splice(place..=place, choices.one_of(&LARGEST).iter().copied())),
            _ => bytes[place] = choices.one_of(&[0, 1, 2, 3, 127, 128, 255]),
        }
        if bytes.len() <= start + 1 {
            return;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    assert!(Scheduler::from_bytes(data).is_err() && Search::from_bytes(data).is_err());
    let mut choices = Choices(Unstructured::new(data));
    let search = choices.search_config(20);
    let limits = choices.limits(9 + 20);
    let Some(mut machine) = Machine::new(search, limits) else { return };
    for _ in 0..choices.below(60) {
        machine.call(&mut choices);
    }
    machine.close_plan();
    let mut bytes = machine.scheduler.to_bytes().expect("no plan is open");
    let start = start_of_state(&machine.scheduler);
    let mut same = machine.resume(&bytes).expect("its own bytes");
    machine.finish();
    same.finish();
    if machine.scheduler.search().config().opportunistic == Opportunistic::Off {
        let (ended, resumed) = (machine.scheduler.forest(), same.scheduler.forest());
        assert_eq!(format!("{:?}", ended.columns()), format!("{:?}", resumed.columns()), "S4");
    }
    bytes.truncate(bytes.len() - 4);
    alter(&mut bytes, start, &mut choices);
    seal(&mut bytes);
    if let Some(mut altered) = machine.resume(&bytes) {
        altered.try_finish();
    }
});
