//! Scores: products of queries and the keys of a tile.

use super::TILE;
use super::tile::Keys;
use crate::element::Element;
use crate::simd::Simd;

/// Scores of `N` queries, `[N, TILE]`, so aligned that no vector straddles two cache lines.
#[repr(C, align(64))]
pub(super) struct Scores<const N: usize>(pub(super) [[f32; TILE]; N]);

/// Computes the scores of `N` neighbouring queries and the vectors `from..end` of keys. A sum runs
/// over the dimension in its order.
///
/// # Safety
/// As [`super::attend`]; behind [`crate::simd::run`]; the tile has these vectors.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
pub(super) unsafe fn score<S: Simd, E: Element, const N: usize>(
    keys: &Keys<E>,
    query: *const f32,
    key_dim: usize,
    (from, end): (usize, usize),
    scores: &mut Scores<N>,
) {
    let mut first = from;
    // SAFETY: the caller's condition.
    unsafe {
        while first < end {
            first += match end - first {
                1 => dots::<S, E, N, 1>(keys, query, key_dim, first, scores),
                2 | 3 => dots::<S, E, N, 2>(keys, query, key_dim, first, scores),
                _ => dots::<S, E, N, 4>(keys, query, key_dim, first, scores),
            };
        }
    }
}

/// The products of `N` queries and `V` vectors of keys; returns `V`.
///
/// # Safety
/// As [`score`].
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[allow(clippy::needless_range_loop, reason = "loops over constants stay in registers")]
#[inline(always)]
unsafe fn dots<S: Simd, E: Element, const N: usize, const V: usize>(
    keys: &Keys<E>,
    query: *const f32,
    key_dim: usize,
    first: usize,
    scores: &mut Scores<N>,
) -> usize {
    // SAFETY: the caller's condition.
    unsafe {
        let mut starts = [std::ptr::null(); V];
        for v in 0..V {
            starts[v] = keys.starts[first + v];
        }
        let mut sums = [[S::splat(0.0); V]; N];
        for d in 0..key_dim {
            let mut key = [S::splat(0.0); V];
            for v in 0..V {
                key[v] = E::load::<S>(starts[v].add(d * keys.stride));
            }
            for n in 0..N {
                let x = S::splat(*query.add(n * key_dim + d));
                for v in 0..V {
                    sums[n][v] = S::mul_add(x, key[v], sums[n][v]);
                }
            }
        }
        for n in 0..N {
            for v in 0..V {
                S::store(scores.0[n].as_mut_ptr().add((first + v) * S::LANES), sums[n][v]);
            }
        }
    }
    V
}
