//! Scores: products of queries and the keys of a tile.

use std::ops::Range;

use super::TILE;
use super::tile::{Ahead, Keys};
use crate::element::Element;
use crate::simd::{Kernel, Simd};

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
    vectors: Range<usize>,
    mut ahead: Option<Ahead>,
    scores: &mut Scores<N>,
) {
    let Range { start: mut first, end } = vectors;
    let to = scores.0.as_mut_ptr().cast::<f32>();
    // SAFETY: the caller's condition.
    unsafe {
        while first < end {
            let to = to.add(first * S::LANES);
            let ahead = ahead.take();
            first += match end - first {
                1..4 => S::call(Dots::<E, N, 1> { keys, query, key_dim, first, ahead, to }),
                _ => S::call(Dots::<E, N, 4> { keys, query, key_dim, first, ahead, to }),
            };
        }
    }
}

/// The products of `N` queries and the `V` vectors of keys from `first` on; returns `V`.
struct Dots<'a, E, const N: usize, const V: usize> {
    keys: &'a Keys<E>,
    query: *const f32,
    key_dim: usize,
    first: usize,
    ahead: Option<Ahead>,
    /// `[N, TILE]`
    to: *mut f32,
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl<E: Element, const N: usize, const V: usize> Kernel for Dots<'_, E, N, V> {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        // SAFETY: the condition of `score`.
        unsafe {
            match self.ahead {
                Some(ahead) => self.sum::<S>(|d| ahead.fetch(d)),
                None => self.sum::<S>(|_| ()),
            }
        }
        V
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[allow(clippy::needless_range_loop, reason = "loops over constants stay in registers")]
impl<E: Element, const N: usize, const V: usize> Dots<'_, E, N, V> {
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, fetch: impl Fn(usize)) {
        let Self { keys, query, key_dim, first, to, .. } = *self;
        // SAFETY: the condition of `score`.
        unsafe {
            let mut starts = [std::ptr::null(); V];
            starts.copy_from_slice(&keys.starts[first..first + V]);
            let mut sums = [[S::splat(0.0); V]; N];
            for d in 0..key_dim {
                fetch(d);
                let mut x = [S::splat(0.0); N];
                for n in 0..N {
                    x[n] = S::splat(*query.add(n * key_dim + d));
                }
                for v in 0..V {
                    let key = E::load::<S>(starts[v].add(d * keys.stride));
                    for n in 0..N {
                        sums[n][v] = S::mul_add(x[n], key, sums[n][v]);
                    }
                }
            }
            for n in 0..N {
                for v in 0..V {
                    S::store(to.add(n * TILE + v * S::LANES), sums[n][v]);
                }
            }
        }
    }
}
