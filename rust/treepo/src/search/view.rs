//! Where a path's tokens and segments lie in its tree.

use crate::forest::Tree;
use crate::ids::PathId;

/// The path that owns the token at `position` of the path's sequence. O(ancestors).
pub(super) fn owner(tree: &Tree, path: PathId, position: u32) -> PathId {
    let mut path = path;
    while let Some(parent) = tree.own(path).parent().filter(|_| position < tree.own(path).at) {
        path = parent;
    }
    path
}

/// The last segment boundary of the path's sequence at or before `at`: a mark or the end of the
/// prompt. O(ancestors * log marks).
pub(crate) fn boundary(tree: &Tree, path: PathId, at: u32) -> u32 {
    tree.boundary_up_to(path, at)
}
