//! Snapshots that were altered and sealed again: what fuzzing found, each in its smallest form.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::search::{Boxed, StopConfig};
use treepo::{Error, PathId, SampledToken, Search, SearchConfig, TokenTexts, TreeId};

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

fn push(search: &mut Search, tree: TreeId, path: PathId) -> treepo::Result<()> {
    search.push_token(tree, path, SampledToken { id: 0, logprob: -1.0, entropy: 1.0 })
}

#[test]
fn no_number_of_a_snapshot_makes_a_search_panic() {
    let config = SearchConfig { width: 3, segment_len: 2, max_depth: 3, ..SearchConfig::default() };
    let config_len = postcard::to_allocvec(&config).unwrap().len();
    let mut search = Search::new(config, 0).unwrap();
    let tree = search.add_tree(0, &[1]).unwrap();
    (0..5).for_each(|_| push(&mut search, tree, PathId(0)).unwrap_or_default());
    let bytes = search.to_bytes().unwrap();
    let start = "TREEPO".len() + 3 + config_len;
    for place in start..bytes.len() - 4 {
        let largest = [255, 255, 255, 255, 15];
        let altered = [&bytes[..place], &largest, &bytes[place + 1..bytes.len() - 4]].concat();
        let Ok(mut search) = Search::from_bytes(&seal(altered)) else { continue };
        while let Some(&segment) = search.segments().first() {
            if push(&mut search, segment.tree, segment.path).is_err() {
                break;
            }
        }
    }
}
