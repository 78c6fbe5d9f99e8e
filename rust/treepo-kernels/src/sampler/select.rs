//! Passes over the entries among which a threshold lies, compiled for every level.

use super::passes::{CHUNK, ChunkSums, MAX_LANES, Row};
use crate::element::Element;
use crate::math::exp;
use crate::simd::{Kernel, Simd};

/// Writes each d = (logit - peak) * scale that reaches the bound, in the order of the vocabulary.
pub(super) struct Collect<'a, T> {
    pub(super) row: Row<T>,
    pub(super) peak: f32,
    pub(super) bound: f32,
    pub(super) chunks: &'a [ChunkSums],
    /// Room for the vocabulary and a vector.
    pub(super) to: &'a mut [f32],
}

impl<T: Element> Kernel for Collect<'_, T> {
    /// How many they are.
    type Output = usize;

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        let Self { row, peak, bound, chunks, to } = self;
        assert!(to.len() >= row.vocab_size + MAX_LANES, "no room for the vocabulary");
        // Above the key of the lanes behind the end.
        let bound = bound.max(f32::MIN);
        let mut written = 0;
        for (chunk, sums) in chunks.iter().enumerate() {
            if (sums.largest - peak) * row.scale < bound {
                continue;
            }
            let (first, count) = row.chunk(chunk);
            for at in (0..count).step_by(S::LANES) {
                let num = S::LANES.min(count - at);
                // SAFETY: the vector lies within the row; there is room for what it holds.
                unsafe {
                    let x = T::load_first::<S>(row.data.add(first + at), num);
                    let d = S::mul(S::sub(x, S::splat(peak)), S::splat(row.scale));
                    let key = S::keep_first(d, num, S::splat(f32::NEG_INFINITY));
                    let to = to.as_mut_ptr().add(written);
                    written += S::store_at_least(to, d, key, S::splat(bound));
                }
            }
        }
        written
    }
}

/// The next larger value that is no denormal: where a program has those read as zero, one of them
/// would be equal to what it has to exceed.
fn next_above(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { x.next_up() }
}

/// Mass of the values from a bound on, and of those above it; a value d has the mass e^d.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mass {
    pub(super) from: f64,
    pub(super) above: f64,
}

/// Sums the masses of values.
pub(super) struct Weigh<'a> {
    pub(super) values: &'a [f32],
    pub(super) bound: f32,
}

impl Kernel for Weigh<'_> {
    type Output = Mass;

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Mass {
        let mut total = Mass { from: 0.0, above: 0.0 };
        for values in self.values.chunks(CHUNK) {
            // SAFETY: each vector lies within the values.
            unsafe {
                let (bound, next) = (S::splat(self.bound), S::splat(next_above(self.bound)));
                let (mut from, mut above) = (S::splat(0.0), S::splat(0.0));
                for at in (0..values.len()).step_by(S::LANES) {
                    let num = S::LANES.min(values.len() - at);
                    let d = f32::load_first::<S>(values.as_ptr().add(at), num);
                    let mass = S::keep_first(exp::<S>(d), num, S::splat(0.0));
                    from = S::add(from, S::keep_at_least(mass, d, bound));
                    above = S::add(above, S::keep_at_least(mass, d, next));
                }
                total.from += f64::from(S::sum(from));
                total.above += f64::from(S::sum(above));
            }
        }
        total
    }
}

/// Which values are kept.
#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Above(f32),
    Below(f32),
}

/// Moves the values that are kept to the front, in their order.
pub(super) struct Keep<'a> {
    /// Behind the first `count` there is room for a vector.
    pub(super) values: &'a mut [f32],
    pub(super) count: usize,
    pub(super) side: Side,
}

impl Kernel for Keep<'_> {
    /// How many are kept.
    type Output = usize;

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        let Self { values, count, side } = self;
        assert!(values.len() >= count + MAX_LANES, "no room behind the values");
        let (sign, bound) = match side {
            Side::Above(pivot) => (1.0, next_above(pivot)),
            Side::Below(pivot) => (-1.0, next_above(-pivot)),
        };
        let values = values.as_mut_ptr();
        let mut written = 0;
        for at in (0..count).step_by(S::LANES) {
            // SAFETY: there is room for a vector behind the values, and what is written lies at or
            // before what was read.
            unsafe {
                let x = S::load(values.add(at));
                let key = S::mul(x, S::splat(sign));
                let key = S::keep_first(key, count - at, S::splat(f32::NEG_INFINITY));
                written += S::store_at_least(values.add(written), x, key, S::splat(bound));
            }
        }
        written
    }
}
