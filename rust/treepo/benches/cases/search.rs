//! The search alone.

use std::hint::black_box;

use treepo::{Result, Search, SearchConfig};

use super::{Run, TOKEN, prompt};

pub(crate) const NUM_PUSHES: u32 = NUM_TREES * WIDTH * NUM_TOKENS;
/// Two paths grow from the prompt and double up to `WIDTH`; tokens of all rounds.
pub(crate) const NUM_TREE_TOKENS: u32 = NUM_TREES * SEGMENT_LEN * (2 + 4 + 8 + 16 * 5);

const NUM_TREES: u32 = 16;
const WIDTH: u32 = 16;
const NUM_TOKENS: u32 = 64;
const SEGMENT_LEN: u32 = 64;
const MAX_DEPTH: u32 = 8;

fn search(config: SearchConfig) -> Result<Search> {
    let mut search = Search::new(config, 0)?;
    for tree in 0..NUM_TREES {
        search.add_tree(u64::from(tree), &prompt(tree, 32))?;
    }
    Ok(search)
}

/// Independent paths: every push goes into the middle of a segment.
pub(crate) fn push() -> Result<Run> {
    let mut search = search(SearchConfig::flat(WIDTH, 2 * NUM_TOKENS))?;
    let segments = search.segments();
    for segment in &segments {
        search.push_token(segment.tree, segment.path, TOKEN)?;
    }
    Ok(Box::new(move || {
        for _ in 0..NUM_TOKENS {
            for segment in &segments {
                let pushed = search.push_token(segment.tree, segment.path, TOKEN);
                pushed.expect("the segment runs");
            }
        }
        black_box(&search);
    }))
}

/// Whole trees, with the ends of their rounds.
pub(crate) fn push_tree() -> Result<Run> {
    let config = SearchConfig {
        width: WIDTH,
        segment_len: SEGMENT_LEN,
        max_depth: MAX_DEPTH,
        ..SearchConfig::default()
    };
    let mut search = search(config)?;
    Ok(Box::new(move || {
        let mut num_tokens = 0;
        while !search.is_done() {
            for segment in search.segments() {
                for _ in 0..segment.max_new_tokens {
                    let pushed = search.push_token(segment.tree, segment.path, TOKEN);
                    pushed.expect("the segment runs");
                }
                num_tokens += segment.max_new_tokens;
            }
        }
        assert_eq!(num_tokens, NUM_TREE_TOKENS, "the trees double up to their width");
    }))
}
