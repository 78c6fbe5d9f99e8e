//! Scores: products of queries and the keys of a tile.

use std::marker::PhantomData;
use std::ops::Range;

use super::TILE;
use super::ahead::{Ahead, TOGETHER};
use super::tile::Keys;
use crate::element::Element;
use crate::simd::{Kernel, Simd};

/// Scores of `N` queries, `[N, TILE]`, so aligned that no vector straddles two cache lines.
#[repr(C, align(64))]
pub(super) struct Scores<const N: usize>(pub(super) [[f32; TILE]; N]);

/// Queries `[N, key_words]` and what their products with keys are multiplied by.
#[derive(Clone, Copy)]
pub(super) struct Queries {
    pub(super) words: *const f32,
    pub(super) key_words: usize,
    pub(super) scaling: f32,
}

/// Computes the scores of `N` neighbouring queries and the vectors `from..end` of keys. A sum runs
/// over the words of a key in their order.
///
/// # Safety
/// As [`super::attend`]; behind [`crate::simd::run`]; the tile has these vectors.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
pub(super) unsafe fn score<S: Simd, T: Element, const N: usize>(
    keys: &Keys,
    queries: Queries,
    vectors: Range<usize>,
    ahead: Option<Ahead>,
    scores: &mut Scores<N>,
) {
    let Range { start: mut first, end } = vectors;
    let mut step = 0;
    let to = scores.0.as_mut_ptr().cast::<f32>();
    let format = PhantomData::<T>;
    // SAFETY: the caller's condition.
    unsafe {
        while first < end {
            let to = to.add(first * S::LANES);
            first += match end - first {
                1..TOGETHER => {
                    S::call(Dots::<T, N, 1> { keys, queries, first, ahead, step, to, format })
                }
                _ => S::call(Dots::<T, N, TOGETHER> {
                    keys,
                    queries,
                    first,
                    ahead,
                    step,
                    to,
                    format,
                }),
            };
            step += queries.key_words;
        }
    }
}

/// The products of `N` queries and the `V` vectors of keys from `first` on; returns `V`.
struct Dots<'a, T, const N: usize, const V: usize> {
    keys: &'a Keys,
    queries: Queries,
    first: usize,
    ahead: Option<Ahead>,
    /// Of what is ahead.
    step: usize,
    /// `[N, TILE]`
    to: *mut f32,
    format: PhantomData<T>,
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl<T: Element, const N: usize, const V: usize> Kernel for Dots<'_, T, N, V> {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        // SAFETY: the condition of `score`.
        unsafe {
            match self.ahead {
                Some(ahead) => self.sum::<S>(|word| ahead.fetch(self.step + word)),
                None => self.sum::<S>(|_| ()),
            }
        }
        V
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[allow(clippy::needless_range_loop, reason = "loops over constants stay in registers")]
impl<T: Element, const N: usize, const V: usize> Dots<'_, T, N, V> {
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, fetch: impl Fn(usize)) {
        let Self { keys, queries, first, to, .. } = *self;
        // SAFETY: the condition of `score`.
        unsafe {
            let mut starts = [std::ptr::null(); V];
            starts.copy_from_slice(&keys.starts[first..first + V]);
            let mut sums = [[S::splat(0.0); V]; N];
            for word in 0..queries.key_words {
                fetch(word);
                let mut x = [S::splat(0.0); N];
                for n in 0..N {
                    x[n] = S::splat(*queries.words.add(n * queries.key_words + word));
                }
                for v in 0..V {
                    let key = S::load(starts[v].add(word * keys.stride));
                    for n in 0..N {
                        sums[n][v] = T::mul_add_words::<S>(x[n], key, sums[n][v]);
                    }
                }
            }
            let scaling = S::splat(queries.scaling);
            for n in 0..N {
                for v in 0..V {
                    S::store(to.add(n * TILE + v * S::LANES), S::mul(sums[n][v], scaling));
                }
            }
        }
    }
}
