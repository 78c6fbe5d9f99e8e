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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn repeats(text: &str, len: usize, count: usize) -> bool {
        has_repetition(text.as_bytes(), len, count, &mut Vec::new())
    }

    /// Counts every piece.
    fn naive(items: &[u8], len: usize, count: usize) -> bool {
        let mut counts = BTreeMap::new();
        if len > 0 {
            for piece in items.windows(len) {
                *counts.entry(piece).or_insert(0) += 1;
            }
        }
        counts.values().any(|&n| n >= count)
    }

    #[test]
    fn thirty_nine_equal_characters_repeat_and_thirty_eight_do_not() {
        assert!(repeats(&"x".repeat(39), 32, 8));
        assert!(!repeats(&"x".repeat(38), 32, 8));
    }

    #[test]
    fn overlapping_occurrences_are_counted() {
        assert!(repeats("abababab", 4, 3));
        assert!(!repeats("abababab", 4, 4));
    }

    #[test]
    fn occurrences_may_lie_apart() {
        assert!(repeats("the cat, the dog, the cow", 4, 3));
        assert!(!repeats("the cat, the dog, the cow", 5, 3));
    }

    #[test]
    fn a_piece_longer_than_the_items_never_occurs() {
        assert!(!repeats("", 1, 1));
        assert!(!repeats("aa", 3, 1));
        assert!(!repeats("aa", 0, 1));
        assert!(repeats("aa", 2, 1));
    }

    #[test]
    fn token_ids_repeat_as_bytes_do() {
        let ids: Vec<u32> = (0..50).map(|i| 100_000 + i % 5).collect();
        let mut scratch = Vec::new();
        assert!(has_repetition(&ids, 5, 10, &mut scratch));
        assert!(!has_repetition(&ids, 5, 11, &mut scratch));
    }

    #[test]
    fn long_pieces_of_equal_items_cost_no_more_than_their_ranks() {
        // comparing pieces of 50 000 items in a sort of 50 000 would take minutes
        let items = vec![7u8; 100_000];
        let mut scratch = Vec::new();
        assert!(has_repetition(&items, 50_000, 50_001, &mut scratch));
        assert!(!has_repetition(&items, 50_000, 50_002, &mut scratch));
    }

    #[test]
    fn the_buffer_is_reused() {
        let items: Vec<u8> = (0..200).collect();
        let mut scratch = Vec::new();
        has_repetition(&items, 3, 2, &mut scratch);
        let capacity = scratch.capacity();
        for end in 0..200 {
            has_repetition(&items[..end], 3, 2, &mut scratch);
        }
        assert_eq!(scratch.capacity(), capacity);
    }

    proptest! {
        #[test]
        fn it_agrees_with_counting_every_piece(
            items in prop::collection::vec(0u8..3, 0..60),
            len in 0usize..20,
            count in 1usize..9,
        ) {
            let mut scratch = vec![3; 5];
            let found = has_repetition(&items, len, count, &mut scratch);
            prop_assert_eq!(found, naive(&items, len, count));
        }

        #[test]
        fn a_sequence_repeats_as_its_reverse_does(
            items in prop::collection::vec(0u8..2, 0..60),
            len in 1usize..9,
            count in 1usize..9,
        ) {
            let found = has_repetition(&items, len, count, &mut Vec::new());
            let reversed: Vec<u8> = items.into_iter().rev().collect();
            prop_assert_eq!(found, has_repetition(&reversed, len, count, &mut Vec::new()));
        }

        #[test]
        fn periodic_items_repeat_as_often_as_they_fit(
            period in prop::collection::vec(0u8..4, 1..6),
            times in 1usize..30,
            len in 1usize..40,
            count in 1usize..20,
        ) {
            let items = period.repeat(times);
            let found = has_repetition(&items, len, count, &mut Vec::new());
            prop_assert_eq!(found, naive(&items, len, count));
        }
    }
}
