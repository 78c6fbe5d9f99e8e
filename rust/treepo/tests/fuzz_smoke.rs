//! Snapshots that were altered and sealed again: what fuzzing found, each in its smallest form.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::search::{Boxed, StopConfig};
use treepo::{Error, SampledToken, Scheduler, SchedulerConfig, Search, SearchConfig, TokenTexts};

/// The bytes with `from` in place of `to`, under a checksum that fits.
fn forge(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let body = &bytes[..bytes.len() - 4];
    let places: Vec<usize> =
        (0..body.len()).filter(|&place| body[place..].starts_with(from)).collect();
    assert_eq!(places.len(), 1, "what is altered is found once");
    let mut forged = [&body[..places[0]], to, &body[places[0] + from.len()..]].concat();
    let checksum = crc32fast::hash(&forged);
    forged.extend_from_slice(&checksum.to_le_bytes());
    forged
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
