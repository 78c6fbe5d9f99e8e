//! What the rules of the search read from a tree: the one place that knows how tokens are stored.

use crate::forest::Tree;
use crate::ids::PathId;

/// A number that each sampled token has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    Logprob,
    Entropy,
}

/// The values of a path's own tokens `start..`, `start` absolute; NaN for tokens that were not
/// sampled.
pub(super) fn own_values(
    tree: &Tree,
    path: PathId,
    start: u32,
    column: Column,
) -> impl Iterator<Item = f32> + '_ {
    let skipped = (start - tree.own(path).at) as usize;
    let (logprobs, entropies) = match column {
        Column::Logprob => (Some(tree.own_logprobs(path).skip(skipped)), None),
        Column::Entropy => (None, Some(tree.own_entropies(path).skip(skipped))),
    };
    logprobs.into_iter().flatten().chain(entropies.into_iter().flatten())
}

/// Sum and number of the sampled tokens in `start..end` of the path's sequence. O(end - start +
/// ancestors).
pub(super) fn sum(tree: &Tree, path: PathId, start: u32, end: u32, column: Column) -> (f64, u32) {
    let (mut sum, mut count, mut end) = (0.0, 0, end);
    let mut current = Some(path);
    while let Some(id) = current.filter(|_| start < end) {
        let own = tree.own(id);
        let from = start.max(own.at);
        if from < end {
            let values = own_values(tree, id, from, column).take((end - from) as usize);
            for value in values.filter(|value| !value.is_nan()) {
                sum += f64::from(value);
                count += 1;
            }
        }
        end = end.min(own.at);
        current = own.parent();
    }
    (sum, count)
}

/// The path that owns the token at `position` of the path's sequence. O(ancestors).
pub(super) fn owner(tree: &Tree, path: PathId, position: u32) -> PathId {
    let mut path = path;
    while let Some(parent) = tree.own(path).parent().filter(|_| position < tree.own(path).at) {
        path = parent;
    }
    path
}

/// The last segment boundary of the path's sequence at or before `at`: a mark or the end of the
/// prompt. O(ancestors).
pub(super) fn boundary(tree: &Tree, path: PathId, at: u32) -> u32 {
    last_mark(tree, path, at).unwrap_or(tree.prompt_len)
}

fn last_mark(tree: &Tree, path: PathId, at: u32) -> Option<u32> {
    let mut current = Some(path);
    let mut at = at;
    while let Some(id) = current {
        let own = tree.own(id);
        let mark = tree.own_marks(id).take_while(|&mark| mark <= at).last();
        if mark.is_some() {
            return mark;
        }
        at = at.min(own.at);
        current = own.parent();
    }
    None
}

/// Segments of the path's sequence that end at or before `at`. O(ancestors).
pub(super) fn depth(tree: &Tree, path: PathId, at: u32) -> u32 {
    let mut path = path;
    loop {
        let own = tree.own(path);
        match own.parent() {
            Some(parent) if at <= own.at => path = parent,
            _ => {
                let marks = tree.own_marks(path).filter(|&mark| mark <= at).count();
                return own.depth_at_fork + marks as u32;
            }
        }
    }
}
