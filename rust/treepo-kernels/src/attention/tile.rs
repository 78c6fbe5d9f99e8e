//! Keys and values of one tile, where they lie or packed.

use std::any::TypeId;

use super::TILE;
use super::ahead::Ahead;
use super::pool::Pool;
use super::scratch::Area;
use crate::element::Element;
use crate::simd::Simd;

/// Blocks below this size are packed: a run of values would be too short.
const MIN_RUN: usize = 8;
/// Runs of values in a tile at most: blocks of `MIN_RUN`, not aligned.
const MAX_RUNS: usize = TILE / MIN_RUN + 1;
/// Vectors of keys in a tile at most.
const MAX_VECTORS: usize = TILE / 8;
/// From so many queries on, bf16 is widened once for all of them, where it would be in each sum.
const MANY_QUERIES: usize = 24;

/// Vectors of keys: lane i of vector v at `starts[v]` is a word of key v * lanes + i.
#[derive(Clone, Copy)]
pub(super) struct Keys {
    pub(super) starts: [*const f32; MAX_VECTORS],
    /// From one word of a key to the next.
    pub(super) stride: usize,
}

/// Runs of values: run r begins with the value of key `bounds[r]` at `starts[r]`.
#[derive(Clone, Copy)]
pub(super) struct Values<E> {
    pub(super) starts: [*const E; MAX_RUNS],
    pub(super) bounds: [usize; MAX_RUNS + 1],
    pub(super) num_runs: usize,
    /// Elements from one value to the next.
    pub(super) stride: usize,
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl<E> Values<E> {
    #[inline(always)]
    fn cast<F>(&self) -> Values<F> {
        let mut starts = [std::ptr::null(); MAX_RUNS];
        for (to, from) in starts.iter_mut().zip(&self.starts) {
            *to = from.cast();
        }
        let Self { bounds, num_runs, stride, .. } = *self;
        Values { starts, bounds, num_runs, stride }
    }
}

/// Whether an element needs no widening.
#[allow(clippy::inline_always, reason = "decides which code exists")]
#[inline(always)]
pub(super) fn is_f32<T: 'static>() -> bool {
    TypeId::of::<T>() == TypeId::of::<f32>()
}

/// Whether the numbers of a word have to be widened before they are multiplied.
#[allow(clippy::inline_always, reason = "decides which code exists")]
#[inline(always)]
pub(super) fn widens_keys<S: Simd, T: Element>() -> bool {
    T::PER_WORD > 1 && !S::HAS_PAIRS
}

/// Writes the numbers of some words.
///
/// # Safety
/// The words exist, and there is room for their numbers.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
pub(super) unsafe fn widen_words<T: Element>(words: *const f32, count: usize, to: *mut f32) {
    let numbers = words.cast::<T>();
    for i in 0..count * T::PER_WORD {
        // SAFETY: the caller's condition.
        unsafe { *to.add(i) = (*numbers.add(i)).to_f32() }
    }
}

/// Something in the pool's format or in f32, there or in scratch.
pub(super) enum Source<P, W> {
    Pool(P),
    Wide(W),
}

/// Keys and values at [`TILE`] positions.
pub(super) struct Tile<T> {
    /// Its first position.
    pub(super) position: usize,
    pub(super) keys: Source<Keys, Keys>,
    pub(super) values: Source<Values<T>, Values<f32>>,
    /// Its own values, for those who compute scores.
    pub(super) ahead: Ahead,
}

/// A tile and who reads it.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) table: &'a [u32],
    pub(super) head: usize,
    /// Its first position.
    pub(super) position: usize,
    /// Positions of it that exist, at least 1.
    pub(super) count: usize,
    pub(super) num_queries: usize,
}

/// The part of a tile in one block.
struct Part {
    /// Its first key within the tile, and that behind its last.
    first: usize,
    end: usize,
    block: usize,
    offset: usize,
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl Place<'_> {
    /// The part that key `first` of the tile begins.
    #[inline(always)]
    fn part(&self, first: usize, block_size: usize) -> Part {
        let position = self.position + first;
        let offset = position % block_size;
        let end = self.count.min(first + block_size - offset);
        Part { first, end, block: self.table[position / block_size] as usize, offset }
    }
}

/// Finds or packs a tile.
///
/// # Safety
/// As [`super::attend`]; behind [`crate::simd::run`].
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
pub(super) unsafe fn open<S: Simd, T: Element>(
    pool: &Pool<T>,
    place: Place<'_>,
    area: Area,
) -> Tile<T> {
    let is_wide = size_of::<T>() < size_of::<f32>() && place.num_queries >= MANY_QUERIES;
    // SAFETY: the tables name blocks of the pool.
    unsafe {
        let widens = is_wide && widens_keys::<S, T>();
        let keys = if pool.block_size.is_multiple_of(S::LANES) && !widens {
            Source::Pool(find_keys(pool, place, S::LANES))
        } else {
            pack_keys(pool, place, widens, area.keys);
            let mut starts = [std::ptr::null(); MAX_VECTORS];
            for (v, start) in starts.iter_mut().enumerate().take(TILE / S::LANES) {
                *start = area.keys.add(v * S::LANES).cast_const();
            }
            let keys = Keys { starts, stride: TILE };
            if widens { Source::Wide(keys) } else { Source::Pool(keys) }
        };
        let mut ahead = Ahead::NONE;
        let values = if is_wide || pool.block_size < MIN_RUN {
            pack_values(pool, place, area.values);
            let mut bounds = [place.count; MAX_RUNS + 1];
            bounds[0] = 0;
            let starts = [area.values.cast_const(); MAX_RUNS];
            Source::Wide(Values { starts, bounds, num_runs: 1, stride: pool.value_stride })
        } else {
            let values = find_values(pool, place);
            if place.num_queries < MANY_QUERIES {
                ahead = Ahead::values::<S, T>(pool, &values, place.count);
            }
            if is_f32::<T>() { Source::Wide(values.cast()) } else { Source::Pool(values) }
        };
        Tile { position: place.position, keys, values, ahead }
    }
}

/// # Safety
/// As [`open`]; blocks hold whole vectors.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
pub(super) unsafe fn find_keys<T: Element>(pool: &Pool<T>, place: Place<'_>, lanes: usize) -> Keys {
    let mut starts = [std::ptr::null(); MAX_VECTORS];
    for (v, start) in starts.iter_mut().enumerate().take(place.count.div_ceil(lanes)) {
        let part = place.part(v * lanes, pool.block_size);
        // SAFETY: the table names blocks of the pool.
        *start = unsafe { pool.keys(part.block, place.head).add(part.offset) };
    }
    Keys { starts, stride: pool.block_size }
}

/// # Safety
/// As [`open`]; blocks have at least `MIN_RUN` keys.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn find_values<T: Element>(pool: &Pool<T>, place: Place<'_>) -> Values<T> {
    let mut starts = [std::ptr::null(); MAX_RUNS];
    let mut bounds = [0; MAX_RUNS + 1];
    let mut num_runs = 0;
    while bounds[num_runs] < place.count {
        let part = place.part(bounds[num_runs], pool.block_size);
        let offset = part.offset * pool.value_stride;
        // SAFETY: the table names blocks of the pool.
        starts[num_runs] = unsafe { pool.values(part.block, place.head).add(offset) };
        num_runs += 1;
        bounds[num_runs] = part.end;
    }
    Values { starts, bounds, num_runs, stride: pool.value_stride }
}

/// Writes the words of the keys as `[key_words, TILE]`, or their numbers as `[key_words * PER_WORD,
/// TILE]`; what lies behind the last key stays as it is.
///
/// # Safety
/// As [`open`].
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn pack_keys<T: Element>(pool: &Pool<T>, place: Place<'_>, widens: bool, to: *mut f32) {
    let mut first = 0;
    while first < place.count {
        let part = place.part(first, pool.block_size);
        let count = part.end - part.first;
        // SAFETY: the table names blocks of the pool.
        unsafe {
            let from = pool.keys(part.block, place.head).add(part.offset);
            for word in 0..pool.key_words {
                let from = from.add(word * pool.block_size);
                if !widens {
                    // As bytes: the pool need not be aligned to words.
                    let to = to.add(word * TILE + part.first).cast::<u8>();
                    from.cast::<u8>().copy_to_nonoverlapping(to, count * size_of::<f32>());
                    continue;
                }
                let from = from.cast::<T>();
                let to = to.add(word * T::PER_WORD * TILE + part.first);
                for number in 0..T::PER_WORD {
                    for i in 0..count {
                        let key = (*from.add(i * T::PER_WORD + number)).to_f32();
                        *to.add(number * TILE + i) = key;
                    }
                }
            }
        }
        first = part.end;
    }
}

/// Writes the values as `[TILE, value_stride]`.
///
/// # Safety
/// As [`open`].
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn pack_values<T: Element>(pool: &Pool<T>, place: Place<'_>, to: *mut f32) {
    let mut first = 0;
    while first < place.count {
        let part = place.part(first, pool.block_size);
        // SAFETY: the table names blocks of the pool.
        unsafe {
            let offset = part.offset * pool.value_stride;
            let from = pool.values(part.block, place.head).add(offset);
            let to = to.add(first * pool.value_stride);
            for i in 0..(part.end - first) * pool.value_stride {
                *to.add(i) = (*from.add(i)).to_f32();
            }
        }
        first = part.end;
    }
}
