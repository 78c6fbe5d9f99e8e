//! The search under every rule, any order of tokens and verdicts, and the caller's operations.
#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;
use treepo::{Error, Path, PathId, Search, TokenTexts, TreeId, Verdict};
use treepo_fuzz::{Choices, Key, TEXTS};

/// A call may be refused; a broken law is a fault.
fn refused<T>(result: treepo::Result<T>) {
    if let Err(error @ Error::LawBroken { .. }) = result {
        panic!("{error}");
    }
}

fn some_path(search: &Search, choices: &mut Choices<'_>) -> (Key, u32) {
    let trees = search.forest().trees();
    let tree = choices.id(trees.len());
    let num_paths = trees.get(tree as usize).map_or(0, |tree| tree.paths().len());
    let key = (TreeId(tree), PathId(choices.id(num_paths)));
    let len = search.forest().path(key.0, key.1).map_or(0, Path::len);
    (key, choices.below(len + 3))
}

fn call(search: &mut Search, choices: &mut Choices<'_>) {
    let operation = choices.below(40);
    let ((tree, path), at) = some_path(search, choices);
    match operation {
        30 | 31 => refused(search.add_tree(choices.below(4).into(), &choices.prompt(5))),
        32 => refused(search.abort_tree(tree)),
        33 | 34 => refused(search.fork(tree, path, at)),
        35 => refused(search.prune(tree, path)),
        36 => refused(search.prune_subtree(tree, path, at)),
        37 => refused(search.rewind(tree, path, at)),
        38 => refused(search.report(tree, path, choices.verdict())),
        39 => drop(search.drain_events()),
        _ => advance(search, choices),
    }
}

/// One token, one segment or one verdict somewhere.
fn advance(search: &mut Search, choices: &mut Choices<'_>) {
    let pending: Vec<Key> = search.ended_segments().collect();
    if let Some(&(tree, path)) = pending.get(choices.id(pending.len()) as usize) {
        refused(search.report(tree, path, choices.verdict()));
        return;
    }
    let segments = search.segments();
    let Some(segment) = segments.get(choices.id(segments.len()) as usize) else { return };
    if choices.below(4) > 0 {
        let token = choices.token();
        search.push_token(segment.tree, segment.path, token).expect("a segment that waits");
        return;
    }
    let tokens: Vec<_> = (0..choices.below(6)).map(|_| choices.token()).collect();
    refused(search.complete_segment(segment.tree, segment.path, &tokens));
}

/// Runs what is left, one kind of token.
fn finish(search: &mut Search, choices: &mut Choices<'_>) {
    let mut num_calls = 0;
    while !search.is_done() {
        let pending: Vec<Key> = search.ended_segments().collect();
        for (tree, path) in pending {
            let verdict = Verdict::Continue { score: 0.5 };
            search.report(tree, path, verdict).expect("a verdict that is asked for");
        }
        if let Some(segment) = search.segments().first() {
            let token = choices.token();
            search.push_token(segment.tree, segment.path, token).expect("a segment that waits");
        }
        search.check().expect("the laws hold");
        num_calls += 1;
        assert!(num_calls < 20_000, "S1: no end");
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices(Unstructured::new(data));
    let config = choices.search_config(20);
    let Ok(mut search) = Search::new(config.clone(), 3) else {
        assert!(config.check().is_err());
        return;
    };
    if choices.below(8) > 0 {
        refused(search.set_texts(TokenTexts::new(TEXTS)));
    }
    while !choices.is_over() {
        call(&mut search, &mut choices);
        search.check().expect("the laws hold");
    }
    finish(&mut search, &mut choices);
    let forest = search.into_forest();
    let again = treepo::Forest::from_columns(&forest.columns()).expect("its own columns");
    assert_eq!(again.nodes(), forest.nodes());
});
