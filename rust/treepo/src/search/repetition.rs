//! Whether a sequence repeats itself.

/// Whether some piece of `len` neighbouring items occurs at least `count` times in `items`;
/// occurrences may overlap. Pieces of no items never do.
///
/// Ranks of all pieces by doubling their length (Karp, Miller, Rosenberg 1972), left as soon as no
/// piece is frequent enough: O(n log n log len) comparisons, whatever the items are. `scratch`
/// keeps its memory between calls.
pub(super) fn has_repetition<T: Ord + Copy>(
    items: &[T],
    len: usize,
    count: usize,
    scratch: &mut Vec<u32>,
) -> bool {
    let n = items.len();
    if len == 0 || n < len || n - len + 1 < count {
        return false;
    }
    scratch.clear();
    scratch.resize(3 * n, 0);
    let (order, rest) = scratch.split_at_mut(n);
    let (ranks, next) = rest.split_at_mut(n);
    let mut most = rank_pieces(order, ranks, |i| items[i]);
    let mut ranked = 1;
    while ranked < len && most >= count {
        let step = ranked.min(len - ranked);
        ranked += step;
        let order = &mut order[..=n - ranked];
        most = rank_pieces(order, next, |i| (ranks[i], ranks[i + step]));
        ranks.copy_from_slice(next);
    }
    most >= count
}

/// Ranks the pieces that start at `0..order.len()` by their keys; equal keys have equal ranks.
/// Returns the size of the largest group of equals.
fn rank_pieces<K: Ord>(order: &mut [u32], ranks: &mut [u32], key: impl Fn(usize) -> K) -> usize {
    for (slot, i) in order.iter_mut().zip(0..) {
        *slot = i;
    }
    order.sort_unstable_by_key(|&i| key(i as usize));
    let (mut rank, mut most) = (0, 0);
    for group in order.chunk_by(|&a, &b| key(a as usize) == key(b as usize)) {
        for &i in group {
            ranks[i as usize] = rank;
        }
        rank += 1;
        most = most.max(group.len());
    }
    most
}
