//! Weighted sums of the values of a tile.

use super::TILE;
use super::ahead::{Ahead, TOGETHER};
use super::score::Scores;
use super::soften::Span;
use super::tile::Values;
use crate::element::Element;
use crate::simd::{Kernel, Simd};

/// Adds the weighted values to the sums `[N, values.stride]` of `N` queries, which are multiplied by
/// `factors` before. A sum runs over the keys in their order.
///
/// # Safety
/// As [`super::attend`]; behind [`crate::simd::run`]; spans lie within the tile.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "loops over constants stay in registers")]
pub(super) unsafe fn mix<S: Simd, E: Element, const N: usize>(
    values: &Values<E>,
    weights: &Scores<N>,
    spans: &[Span; N],
    factors: &[f32; N],
    ahead: Option<Ahead>,
    mixed: *mut f32,
) {
    let (mut from, mut end) = (0, TILE);
    for span in spans {
        (from, end) = (from.max(span.from), end.min(span.end));
    }
    // SAFETY: the caller's condition.
    unsafe {
        // A key that only some of the queries see must not touch the others: not even as a
        // product with 0, for it may be NaN.
        let mut factors = *factors;
        if N == 1 || from >= end {
            (from, end) = (TILE, TILE);
        }
        for n in 0..N {
            let Span { from: own_from, end: own_end } = spans[n];
            if own_from < from {
                let span = Span { from: own_from, end: own_end.min(from) };
                let own = Part { weights: weights.0[n].as_ptr(), span, ahead };
                add::<S, E, 1>(values, own, &[factors[n]], mixed.add(n * values.stride));
                factors[n] = 1.0;
            }
        }
        if N == 1 || from >= end {
            return;
        }
        let common = Part { weights: weights.0.as_ptr().cast(), span: Span { from, end }, ahead };
        add::<S, E, N>(values, common, &factors, mixed);
        for n in 0..N {
            if spans[n].end > end {
                let span = Span { from: end, end: spans[n].end };
                let own = Part { weights: weights.0[n].as_ptr(), span, ahead };
                add::<S, E, 1>(values, own, &[1.0], mixed.add(n * values.stride));
            }
        }
    }
}

/// The weights `[N, TILE]` of some keys.
#[derive(Clone, Copy)]
struct Part {
    weights: *const f32,
    span: Span,
    ahead: Option<Ahead>,
}

/// # Safety
/// As [`mix`]; all `N` queries see the part's keys.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn add<S: Simd, E: Element, const N: usize>(
    values: &Values<E>,
    part: Part,
    factors: &[f32; N],
    mixed: *mut f32,
) {
    let num_vectors = values.stride / S::LANES;
    let (mut first, mut step) = (0, 0);
    // SAFETY: the caller's condition.
    unsafe {
        while first < num_vectors {
            first += match num_vectors - first {
                1..TOGETHER => {
                    S::call(Sums::<E, N, 1> { values, part, factors, mixed, first, step })
                }
                _ => S::call(Sums::<E, N, TOGETHER> { values, part, factors, mixed, first, step }),
            };
            step += part.span.end;
        }
    }
}

/// `V` vectors of the dimension, from vector `first` on; returns `V`.
struct Sums<'a, E, const N: usize, const V: usize> {
    values: &'a Values<E>,
    part: Part,
    factors: &'a [f32; N],
    mixed: *mut f32,
    first: usize,
    step: usize,
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl<E: Element, const N: usize, const V: usize> Kernel for Sums<'_, E, N, V> {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        // SAFETY: the condition of `mix`.
        unsafe {
            match self.part.ahead {
                Some(ahead) => self.sum::<S>(|key| ahead.fetch(self.step + key)),
                None => self.sum::<S>(|_| ()),
            }
        }
        V
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[allow(clippy::needless_range_loop, reason = "loops over constants stay in registers")]
impl<E: Element, const N: usize, const V: usize> Sums<'_, E, N, V> {
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, fetch: impl Fn(usize)) {
        let Self { values, part, factors, mixed, first, .. } = *self;
        let stride = values.stride;
        // SAFETY: the condition of `mix`.
        unsafe {
            let mixed = mixed.add(first * S::LANES);
            let mut sums = [[S::splat(0.0); V]; N];
            for n in 0..N {
                for v in 0..V {
                    let before = S::load(mixed.add(n * stride + v * S::LANES));
                    sums[n][v] = S::mul(before, S::splat(factors[n]));
                }
            }
            for run in 0..values.num_runs {
                let (start, bound) = (values.bounds[run], values.bounds[run + 1]);
                let base = values.starts[run].add(first * S::LANES);
                for key in part.span.from.max(start)..part.span.end.min(bound) {
                    fetch(key);
                    let mut weight = [S::splat(0.0); N];
                    for n in 0..N {
                        weight[n] = S::splat(*part.weights.add(n * TILE + key));
                    }
                    for v in 0..V {
                        let from = base.add((key - start) * stride + v * S::LANES);
                        let value = E::load::<S>(from);
                        for n in 0..N {
                            sums[n][v] = S::mul_add(weight[n], value, sums[n][v]);
                        }
                    }
                }
            }
            for n in 0..N {
                for v in 0..V {
                    S::store(mixed.add(n * stride + v * S::LANES), sums[n][v]);
                }
            }
        }
    }
}
