//! What fuzzing and review found, each in its smallest form: snapshots that were altered and sealed
//! again, numbers as large as they get.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::schedule::PlanArrays;
use treepo::search::{Boxed, StopConfig};
use treepo::{
    Error, Memory, PathId, SampledToken, Scheduler, SchedulerConfig, Search, SearchConfig,
    TokenTexts, TreeId,
};

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The bytes with `to` in place of `from`, under a checksum that fits.
fn forge(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let body = &bytes[..bytes.len() - 4];
    let places: Vec<usize> =
        (0..body.len()).filter(|&place| body[place..].starts_with(from)).collect();
    assert_eq!(places.len(), 1, "what is altered is found once");
    seal([&body[..places[0]], to, &body[places[0] + from.len()..]].concat())
}

/// A search that reads the texts of its tokens, which are 40 and 41.
fn search_with_texts() -> Search {
    let stop = StopConfig { boxed: Boxed::Stops, ..StopConfig::default() };
    let mut search = Search::new(SearchConfig { stop, ..SearchConfig::default() }, 0).unwrap();
    search.set_texts(TokenTexts::new([&[40u8], &[41u8]])).unwrap();
    search.add_tree(0, &[1]).unwrap();
    search
}

#[test]
fn texts_whose_offsets_lie_outside_their_bytes_are_refused() {
    let bytes = search_with_texts().to_bytes().unwrap();
    for offsets in [[0, 1, 9], [0, 9, 2], [2, 1, 0], [1, 1, 2]] {
        let to = [&[2, 40, 41, 3], &offsets[..]].concat();
        let forged = forge(&bytes, &[2, 40, 41, 3, 0, 1, 2], &to);
        let result = Search::from_bytes(&forged);
        assert!(matches!(result, Err(Error::InvalidInput(_))), "offsets {offsets:?}");
    }
}

/// The largest numbers of 32 and of 64 bits, as the content writes them.
const LARGEST: [&[u8]; 2] =
    [&[255, 255, 255, 255, 15], &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]];

const TOKEN: SampledToken = SampledToken { id: 0, logprob: -1.0, entropy: 1.0 };

fn small() -> SearchConfig {
    SearchConfig { width: 3, segment_len: 2, max_depth: 3, ..SearchConfig::default() }
}

/// The snapshot with each of its bytes from `start` on in turn replaced by a largest number.
fn altered(bytes: &[u8], start: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let end = bytes.len() - 4;
    let places = (start..end).flat_map(|place| LARGEST.map(|largest| (place, largest)));
    places.map(move |(place, largest)| {
        seal([&bytes[..place], largest, &bytes[place + 1..end]].concat())
    })
}

/// Where the content begins.
const HEADER_LEN: usize = "TREEPO".len() + 3;

#[test]
fn no_number_of_a_snapshot_makes_a_search_panic() {
    let mut search = Search::new(small(), 0).unwrap();
    let tree = search.add_tree(0, &[1]).unwrap();
    (0..5).for_each(|_| search.push_token(tree, PathId(0), TOKEN).unwrap_or_default());
    let start = HEADER_LEN + postcard::to_allocvec(&small()).unwrap().len();
    for bytes in altered(&search.to_bytes().unwrap(), start) {
        let Ok(mut search) = Search::from_bytes(&bytes) else { continue };
        while let Some(&segment) = search.segments().first() {
            if search.push_token(segment.tree, segment.path, TOKEN).is_err() {
                break;
            }
        }
    }
}

/// Plans and commits a step; whether there was one.
fn step(scheduler: &mut Scheduler) -> bool {
    let mut arrays = PlanArrays::new(&scheduler.capacity());
    let num_samples = scheduler.plan_step(&mut arrays.buffers()).map_or(0, |plan| plan.num_samples);
    scheduler.commit_step(&vec![TOKEN; num_samples]).is_ok()
}

#[test]
fn no_number_of_a_snapshot_makes_a_scheduler_panic() {
    let limits = SchedulerConfig { num_blocks: 9, max_num_seqs: 2, ..SchedulerConfig::default() };
    let mut scheduler = Scheduler::new(small(), limits, 0).unwrap();
    scheduler.add_tree(0, &[1]).unwrap();
    scheduler.add_tree(1, &[1]).unwrap();
    (0..3).for_each(|_| assert!(step(&mut scheduler)));
    let config_lens = [postcard::to_allocvec(&limits), postcard::to_allocvec(&small())];
    let start = HEADER_LEN + config_lens.map(|bytes| bytes.unwrap().len()).iter().sum::<usize>();
    for bytes in altered(&scheduler.to_bytes().unwrap(), start) {
        let Ok(mut scheduler) = Scheduler::from_bytes(&bytes) else { continue };
        while step(&mut scheduler) {}
    }
}

#[test]
fn sizes_whose_products_leave_32_bits_are_refused() {
    assert!(matches!(Memory::new(4, 3_000_000_000), Err(Error::InvalidConfig { .. })));
    assert!(matches!(Memory::new(u32::MAX, 16), Err(Error::InvalidConfig { .. })));
    let mut memory = Memory::new(4000, 1 << 20).unwrap();
    memory.add_path(TreeId(0), PathId(0)).unwrap();
    assert!(memory.extend(TreeId(0), PathId(0), u32::MAX).is_err());
    memory.extend(TreeId(0), PathId(0), i32::MAX as u32).unwrap();
    memory.check().unwrap();
}

#[test]
fn a_width_that_no_memory_holds_kills_nothing() {
    let search = SearchConfig { width: 1 << 24, ..small() };
    let mut scheduler = Scheduler::new(search, SchedulerConfig::default(), 0).unwrap();
    scheduler.add_tree(0, &[1]).unwrap();
    scheduler.check().unwrap();
}

#[test]
fn limits_that_the_plan_arrays_cannot_count_are_refused() {
    let large = 1 << 31; // the arrays are of i32
    let default = SchedulerConfig::default();
    for limits in [
        SchedulerConfig { max_num_batched_tokens: large, ..default },
        SchedulerConfig { block_size: large, ..default },
    ] {
        let result = Scheduler::new(small(), limits, 0);
        assert!(matches!(result, Err(Error::InvalidConfig { .. })), "{limits:?}");
    }
}
