//! Weightings of the live paths where they disagree: segment against path, mean against sum.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use treepo::search::BranchBy;
use treepo::{FallbackFrom, Path, PathId, SampledToken, Search, SearchConfig, TreeId};

const TREE: TreeId = TreeId(0);
const EOS: u32 = 9;

/// Segments of 2 tokens; at this temperature the path of the lowest value gets everything.
fn search(by: BranchBy, width: u32, branch_factor: u32) -> Search {
    let mut config = SearchConfig {
        width,
        branch_factor,
        segment_len: 2,
        max_depth: 4,
        eos_token_ids: vec![EOS],
        ..SearchConfig::default()
    };
    config.fallback.from = FallbackFrom::Nothing;
    (config.branch.by, config.branch.temperature) = (by, 0.01);
    let mut search = Search::new(config, 0).unwrap();
    search.add_tree(1, &[5, 5]).unwrap();
    search
}

/// Ends the segment of each of these paths with tokens of one (log-probability, entropy).
fn run(search: &mut Search, numbers: &[(u32, f32, f32)]) {
    for &(path, logprob, entropy) in numbers {
        let token = SampledToken { id: 1, logprob, entropy };
        search.complete_segment(TREE, PathId(path), &[token; 2]).unwrap();
    }
}

/// The paths that those from `first` on have left.
fn sources(search: &Search, first: usize) -> Vec<Option<PathId>> {
    let paths = search.forest().tree(TREE).unwrap().paths();
    paths[first..].iter().map(Path::parent).collect()
}

/// Path 0 has the lower mean, path 1 the lower last segment.
fn favoured_after_two_segments(by: BranchBy) -> Vec<Option<PathId>> {
    let mut search = search(by, 6, 2);
    run(&mut search, &[(0, -9.0, 0.0), (1, 0.0, 9.0)]);
    assert_eq!(sources(&search, 2), [Some(PathId(0)); 2]);
    run(&mut search, &[(0, -1.0, 2.0), (2, -1.0, 2.0), (3, -1.0, 2.0), (1, -2.0, 1.0)]);
    sources(&search, 4)
}

#[test]
fn a_weighting_by_segment_forgets_the_segments_before() {
    for by in [BranchBy::SegmentEntropy, BranchBy::SegmentLogprob] {
        assert_eq!(favoured_after_two_segments(by), [Some(PathId(1)); 2], "{by:?}");
    }
    for by in [BranchBy::PathLogprob, BranchBy::MeanLogprob] {
        assert_ne!(favoured_after_two_segments(by)[0], Some(PathId(1)), "{by:?}");
    }
}

/// The path that is forked of path 0, of four tokens and the lower sum, and path 2, of two tokens and
/// the lower mean.
fn favoured_of_unequal_lengths(by: BranchBy) -> Vec<Option<PathId>> {
    let mut search = search(by, 4, 1);
    run(&mut search, &[(0, -1.0, 1.0), (1, -1.0, 1.0)]);
    assert_eq!(search.fork(TREE, PathId(0), 2).unwrap(), PathId(2));
    let end = SampledToken { id: EOS, logprob: -1.0, entropy: 1.0 };
    search.push_token(TREE, PathId(1), end).unwrap();
    run(&mut search, &[(0, -1.0, 1.0), (2, -1.5, 1.0)]);
    sources(&search, 3)
}

#[test]
fn a_sum_grows_with_the_length_and_a_mean_does_not() {
    assert_eq!(favoured_of_unequal_lengths(BranchBy::PathLogprob), [Some(PathId(0))]);
    assert_eq!(favoured_of_unequal_lengths(BranchBy::MeanLogprob), [Some(PathId(2))]);
}
