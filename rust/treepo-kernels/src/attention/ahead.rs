//! Reading ahead.

use super::TILE;
use super::pool::Pool;
use super::tile::{Place, Values, find_keys};
use crate::element::Element;
use crate::simd::{self, Simd};

/// Memory that is asked for while something else is computed: streams that are followed fetch by
/// fetch, a line each, spread over the steps of a loop. In blocks of 16 keys that is every
/// line. Many requests in few steps would fill up the processor's queue: these steps wait for memory,
/// and memory then waits for the others.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    starts: [*const u8; STREAMS],
    num_fetches: usize,
    /// Bytes from one fetch to the next.
    stride: usize,
    /// There is one in `1 << shift` steps.
    shift: u32,
}

const STREAMS: usize = 4;
const LINE_BYTES: usize = 64;

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl Ahead {
    /// Nothing.
    pub(super) const NONE: Self =
        Self { starts: [std::ptr::null(); STREAMS], num_fetches: 0, stride: 0, shift: 0 };

    /// Follows pointers over `bytes` in `num_steps`, with `most` fetches at most. Where there are
    /// fewer steps, all is asked for now.
    #[inline(always)]
    fn new<T>(starts: &[*const T], bytes: usize, most: usize, num_steps: usize) -> Self {
        let mut all = [starts[0].cast(); STREAMS];
        for (to, from) in all.iter_mut().zip(starts) {
            *to = from.cast();
        }
        let num_fetches = bytes.div_ceil(LINE_BYTES).min(most).max(1);
        let stride = bytes / num_fetches;
        let Some(shift) = (num_steps / num_fetches).checked_ilog2() else {
            let ahead = Self { starts: all, num_fetches, stride, shift: 0 };
            (0..num_fetches).for_each(|step| ahead.fetch(step));
            return Self::NONE;
        };
        Self { starts: all, num_fetches, stride, shift }
    }

    /// The keys of a tile while the values of `count` others are summed.
    ///
    /// # Safety
    /// As [`super::tile::open`].
    #[inline(always)]
    pub(super) unsafe fn keys<S: Simd, T: Element>(
        pool: &Pool<T>,
        place: Place<'_>,
        count: usize,
    ) -> Self {
        let bytes = pool.key_words * pool.block_size * size_of::<f32>();
        // SAFETY: the caller's condition.
        let keys = unsafe { find_keys(pool, place, TILE / STREAMS) };
        let num_starts = place.count.div_ceil(TILE / STREAMS).min(STREAMS);
        let num_steps = num_passes(pool.value_stride / S::LANES) * count;
        Self::new(&keys.starts[..num_starts], bytes, pool.key_words, num_steps)
    }

    /// The values of a tile while the scores of its `count` keys are computed.
    #[inline(always)]
    pub(super) fn values<S: Simd, T: Element>(
        pool: &Pool<T>,
        values: &Values<T>,
        count: usize,
    ) -> Self {
        let num_values = pool.block_size.min(TILE);
        let bytes = num_values * pool.value_stride * size_of::<T>();
        let num_steps = num_passes(count.div_ceil(S::LANES)) * pool.key_words;
        Self::new(&values.starts[..values.num_runs.min(STREAMS)], bytes, TILE, num_steps)
    }

    /// Asks for the lines of a step, if it has some.
    #[inline(always)]
    pub(super) fn fetch(&self, step: usize) {
        let index = step >> self.shift;
        if index << self.shift == step && index < self.num_fetches {
            for start in self.starts {
                simd::prefetch(start.wrapping_add(index * self.stride));
            }
        }
    }
}

/// Vectors that a pass goes over together.
pub(super) const TOGETHER: usize = 4;

/// Passes over some vectors: those that are left over have one each.
fn num_passes(num_vectors: usize) -> usize {
    num_vectors / TOGETHER + num_vectors % TOGETHER
}
