//! Passes over the logits of one row, compiled for every level.
//!
//! The vocabulary is cut into chunks of [`CHUNK`] entries by their index. Every sum runs within a
//! chunk first, in f32, and then over chunks, in f64, so that its order depends on the vocabulary
//! alone.

use crate::element::Element;
use crate::math::exp;
use crate::simd::{Kernel, Simd};

/// Entries of a chunk: what the second look at it reads is still in the first-level cache.
pub(super) const CHUNK: usize = 512;
/// Most lanes of any level.
pub(super) const MAX_LANES: usize = 16;
/// Vectors in flight, as a sum takes several cycles.
const NUM_SUMS: usize = 2;

/// Logits of one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<T> {
    pub(super) data: *const T,
    pub(super) vocab_size: usize,
    /// 1 / temperature.
    pub(super) scale: f32,
}

impl<T> Row<T> {
    /// First entry and number of entries of a chunk.
    pub(super) fn chunk(&self, chunk: usize) -> (usize, usize) {
        let first = chunk * CHUNK;
        (first, CHUNK.min(self.vocab_size - first))
    }

    pub(super) fn num_chunks(&self) -> usize {
        self.vocab_size.div_ceil(CHUNK)
    }
}

/// What one look at a chunk gives.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ChunkSums {
    /// Its largest logit.
    pub(super) largest: f32,
    /// The sum of e^d, where d = (logit - largest) * scale.
    pub(super) mass: f32,
    /// The sum of d e^d; NaN if a logit is NaN or infinite.
    pub(super) moment: f32,
}

/// Looks at every chunk once.
pub(super) struct Scan<'a, T> {
    pub(super) row: Row<T>,
    pub(super) chunks: &'a mut [ChunkSums],
}

impl<T: Element> Kernel for Scan<'_, T> {
    type Output = ();

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (chunk, sums) in self.chunks.iter_mut().enumerate() {
            let (first, count) = self.row.chunk(chunk);
            // SAFETY: the chunk lies within the row.
            *sums = unsafe { scan_chunk::<S, T>(self.row.data.add(first), count, self.row.scale) };
        }
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn scan_chunk<S: Simd, T: Element>(data: *const T, count: usize, scale: f32) -> ChunkSums {
    unsafe {
        let largest = largest::<S, T>(data, count);
        let (peak, scale) = (S::splat(largest), S::splat(scale));
        let mut masses = [S::splat(0.0); NUM_SUMS];
        let mut moments = masses;
        let mut at = 0;
        while at + NUM_SUMS * S::LANES <= count {
            for i in 0..NUM_SUMS {
                let x = T::load::<S>(data.add(at + i * S::LANES));
                let d = S::mul(S::sub(x, peak), scale);
                let mass = exp::<S>(d);
                masses[i] = S::add(masses[i], mass);
                moments[i] = S::mul_add(mass, d, moments[i]);
            }
            at += NUM_SUMS * S::LANES;
        }
        while at < count {
            let num = S::LANES.min(count - at);
            let d = S::mul(S::sub(T::load_first::<S>(data.add(at), num), peak), scale);
            let zero = S::splat(0.0);
            let mass = exp::<S>(d);
            masses[0] = S::add(masses[0], S::keep_first(mass, num, zero));
            moments[0] = S::add(moments[0], S::keep_first(S::mul(mass, d), num, zero));
            at += S::LANES;
        }
        let mass = S::sum(S::add(masses[0], masses[1]));
        ChunkSums { largest, mass, moment: S::sum(S::add(moments[0], moments[1])) }
    }
}

/// The largest of `count` entries; a NaN may be passed over.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn largest<S: Simd, T: Element>(data: *const T, count: usize) -> f32 {
    unsafe {
        let lowest = S::splat(f32::NEG_INFINITY);
        let mut largest = [lowest; NUM_SUMS];
        let mut at = 0;
        while at + NUM_SUMS * S::LANES <= count {
            for (i, largest) in largest.iter_mut().enumerate() {
                *largest = S::max(T::load::<S>(data.add(at + i * S::LANES)), *largest);
            }
            at += NUM_SUMS * S::LANES;
        }
        while at < count {
            let num = S::LANES.min(count - at);
            let x = S::keep_first(T::load_first::<S>(data.add(at), num), num, lowest);
            largest[0] = S::max(x, largest[0]);
            at += S::LANES;
        }
        S::largest(S::max(largest[0], largest[1]))
    }
}

/// e^x of each, by the same instructions as the other passes.
pub(super) struct Exponentiate<'a> {
    pub(super) values: &'a mut [f32],
}

impl Kernel for Exponentiate<'_> {
    type Output = ();

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let count = self.values.len();
        for at in (0..count).step_by(S::LANES) {
            let num = S::LANES.min(count - at);
            // SAFETY: the vector lies within the values.
            unsafe {
                let data = self.values.as_mut_ptr().add(at);
                let x = f32::load_first::<S>(data, num);
                f32::store_first::<S>(data, num, exp::<S>(x));
            }
        }
    }
}

/// Masses of one chunk's entries, and their sums by groups of [`ChunkMasses::group`].
#[derive(Debug)]
pub(super) struct ChunkMasses {
    pub(super) entries: [f32; CHUNK],
    pub(super) groups: [f32; CHUNK],
    /// Entries of a group.
    pub(super) group: usize,
}

impl ChunkMasses {
    pub(super) fn new() -> Self {
        Self { entries: [0.0; CHUNK], groups: [0.0; CHUNK], group: MAX_LANES }
    }
}

/// Fills the masses of one chunk relative to the row's largest logit.
pub(super) struct FillMasses<'a, T> {
    pub(super) row: Row<T>,
    pub(super) chunk: usize,
    /// The row's largest logit.
    pub(super) peak: f32,
    /// Entries further below the peak have no mass: the smallest d that is kept.
    pub(super) lowest: f32,
    pub(super) masses: &'a mut ChunkMasses,
}

impl<T: Element> Kernel for FillMasses<'_, T> {
    /// Number of groups.
    type Output = usize;

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        let (first, count) = self.row.chunk(self.chunk);
        self.masses.group = S::LANES;
        for at in (0..count).step_by(S::LANES) {
            let num = S::LANES.min(count - at);
            // SAFETY: the vector lies within the chunk, of which the row holds `count` entries.
            unsafe {
                let x = T::load_first::<S>(self.row.data.add(first + at), num);
                let d = S::mul(S::sub(x, S::splat(self.peak)), S::splat(self.row.scale));
                let mass = S::keep_at_least(exp::<S>(d), d, S::splat(self.lowest));
                let mass = S::keep_first(mass, num, S::splat(0.0));
                S::store(self.masses.entries.as_mut_ptr().add(at), mass);
                self.masses.groups[at / S::LANES] = S::sum(mass);
            }
        }
        count.div_ceil(S::LANES)
    }
}
