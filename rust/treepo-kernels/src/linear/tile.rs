//! Products of a few rows with a panel, all sums in registers.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::pack::VECTORS;
use super::{LinearShape, Summands};
use crate::element::Element;
use crate::elementwise::{Output, Rows};
use crate::simd::{Kernel, Level, Simd, prefetch_far};

/// Rows of a tile: their sums, a panel's vectors and one factor fill the registers.
pub(super) fn max_rows<T: Element>(level: Level) -> usize {
    match level {
        Level::Portable | Level::Neon | Level::Avx2 if T::PER_WORD > 1 => 4,
        Level::Portable | Level::Neon | Level::Avx2 => 6,
        Level::Avx512 | Level::Avx512Bf16 => MAX_ROWS,
    }
}

const MAX_ROWS: usize = 12;
const LINE_BYTES: usize = 64;
/// Lanes of the widest level.
const MAX_LANES: usize = 16;
/// The most words that are summed one after another; the sums of such chains are added up. A sum of
/// 1,536 products of f32 then has a quarter of one chain's rounding error. Of bf16, whose results are
/// rounded far more coarsely, a chain has more.
fn max_chain<T: Element>() -> usize {
    if T::PER_WORD > 1 { 160 } else { 64 }
}

/// Rows times panels.
pub(super) struct Tiles<T> {
    /// Of a tile.
    pub(super) max_rows: usize,
    pub(super) shape: LinearShape,
    pub(super) rows: Range<usize>,
    pub(super) panels: Range<usize>,
    pub(super) input: Rows<T>,
    /// The packed weight; its rows are the panels.
    pub(super) weight: Rows<T>,
    pub(super) summands: Summands<T>,
    pub(super) output: Output<T>,
}

impl<T: Element> Kernel for Tiles<T> {
    type Output = ();

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let num_rows = self.rows.len();
        let num_tiles = num_rows.div_ceil(self.max_rows);
        let depth = self.shape.in_features.div_ceil(T::PER_WORD);
        let pace = Pace::new::<T>(depth, self.weight.stride * size_of::<T>(), num_tiles);
        for panel in self.panels.clone() {
            for tile in 0..num_tiles {
                let first = |tile: usize| tile * num_rows / num_tiles;
                let height = first(tile + 1) - first(tile);
                let at = At { panel, row: self.rows.start + first(tile), tile, pace };
                // SAFETY: rows and panels exist.
                unsafe {
                    match height {
                        1 => self.tile::<S, 1>(at),
                        2 => self.tile::<S, 2>(at),
                        3 => self.tile::<S, 3>(at),
                        4 => self.tile::<S, 4>(at),
                        5 => self.tile::<S, 5>(at),
                        6 => self.tile::<S, 6>(at),
                        7 => self.tile::<S, 7>(at),
                        8 => self.tile::<S, 8>(at),
                        9 => self.tile::<S, 9>(at),
                        10 => self.tile::<S, 10>(at),
                        11 => self.tile::<S, 11>(at),
                        _ => self.tile::<S, MAX_ROWS>(at),
                    }
                }
            }
        }
    }
}

/// Where a tile is.
#[derive(Clone, Copy)]
struct At {
    panel: usize,
    row: usize,
    tile: usize,
    pace: Pace,
}

/// How a panel is gone through. Meanwhile the next one comes from memory, a part of it in each tile.
#[derive(Clone, Copy)]
struct Pace {
    /// Words of a chain.
    chain: usize,
    /// Bytes of the next panel that are asked for during a word.
    ahead_per_word: usize,
}

impl Pace {
    fn new<T: Element>(depth: usize, panel_bytes: usize, num_tiles: usize) -> Self {
        Self {
            chain: depth.div_ceil(depth.div_ceil(max_chain::<T>()).max(1)),
            ahead_per_word: panel_bytes.div_ceil(num_tiles.max(1) * depth.max(1)),
        }
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl<T: Element> Tiles<T> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const HEIGHT: usize>(&self, at: At) {
        // Words, the last of which may be cut.
        let depth = self.shape.in_features.div_ceil(T::PER_WORD);
        let whole = self.shape.in_features / T::PER_WORD;
        let mut totals = [MaybeUninit::<f32>::uninit(); MAX_ROWS * VECTORS * MAX_LANES];
        let totals = totals.as_mut_ptr().cast::<f32>();
        let is_cut_panel = (at.panel + 1) * VECTORS * S::LANES > self.shape.out_features;
        let mut ahead = self.weight.row(at.panel + 1).cast::<u8>();
        ahead = ahead.wrapping_add(at.tile * depth * at.pace.ahead_per_word);
        let mut first = 0;
        loop {
            let end = depth.min(first + at.pace.chain);
            let len = whole.min(end) - first;
            let chain = Chain::<T, HEIGHT> {
                tiles: self,
                at,
                first,
                len,
                is_cut: whole < end,
                ahead,
                finishes: end == depth && !is_cut_panel,
                totals,
            };
            // SAFETY: inputs, rows and panel exist, and the totals are this function's.
            unsafe { S::call(chain) }
            if end == depth {
                break;
            }
            first = end;
            ahead = ahead.wrapping_add(len * at.pace.ahead_per_word);
        }
        if is_cut_panel {
            for row in 0..HEIGHT {
                // SAFETY: the row exists, and the last chain has written its totals.
                unsafe { self.finish_cut::<S>(at.row + row, at.panel, totals_at::<S>(totals, row)) }
            }
        }
    }

    /// Adds the summands and writes a row's results of a panel of which only a part exists.
    #[inline(always)]
    unsafe fn finish_cut<S: Simd>(&self, row: usize, panel: usize, totals: [*mut f32; VECTORS]) {
        let width = self.shape.out_features;
        for (vector, total) in totals.into_iter().enumerate() {
            let column = (panel * VECTORS + vector) * S::LANES;
            if column >= width {
                return;
            }
            let count = S::LANES.min(width - column);
            // SAFETY: `count` elements from `column` on exist.
            unsafe {
                let mut sum = S::load(total);
                if let Some(bias) = self.summands.bias {
                    sum = S::add(sum, T::load_first::<S>(bias.add(column), count));
                }
                if let Some(residual) = self.summands.residual {
                    let from = residual.row(row).add(column);
                    sum = S::add(sum, T::load_first::<S>(from, count));
                }
                let to = self.output.pointer().add(row * width + column);
                T::store_first::<S>(to, count, sum);
            }
        }
    }
}

/// The totals of a row of a tile, a vector each.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
fn totals_at<S: Simd>(totals: *mut f32, row: usize) -> [*mut f32; VECTORS] {
    std::array::from_fn(|vector| totals.wrapping_add((row * VECTORS + vector) * S::LANES))
}

/// Products of a few words of a tile: a function of its own, as the sums fill the registers.
struct Chain<'a, T, const HEIGHT: usize> {
    tiles: &'a Tiles<T>,
    at: At,
    /// The first word.
    first: usize,
    /// Whole words.
    len: usize,
    /// Whether the first element of another word follows.
    is_cut: bool,
    ahead: *const u8,
    /// Whether no chain follows, and the results are written.
    finishes: bool,
    /// What the chains before have added up, a vector each.
    totals: *mut f32,
}

impl<T: Element, const HEIGHT: usize> Kernel for Chain<'_, T, HEIGHT> {
    type Output = ();

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut sums = [[unsafe { S::splat(0.0) }; VECTORS]; HEIGHT];
        let first = self.first;
        let panel = self.tiles.weight.row(self.at.panel).cast::<f32>();
        let words = Words::<T> {
            input: self.tiles.input.row(self.at.row).wrapping_add(first * T::PER_WORD),
            stride: self.tiles.input.stride,
            weight: panel.wrapping_add(first * VECTORS * S::LANES),
        };
        // SAFETY: the caller's condition.
        unsafe {
            if self.at.pace.ahead_per_word > LINE_BYTES {
                self.add_words::<S, 2>(&words, &mut sums);
            } else {
                self.add_words::<S, 1>(&words, &mut sums);
            }
        }
        // SAFETY: the caller's condition.
        unsafe {
            if self.is_cut {
                words.add_cut_word::<S, HEIGHT>(self.len, &mut sums);
            }
            if first > 0 {
                self.add_totals::<S>(&mut sums);
            }
            if self.finishes {
                self.finish::<S>(&mut sums);
            } else {
                self.keep::<S>(sums);
            }
        }
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[allow(clippy::needless_range_loop, reason = "loops over constants stay in registers")]
impl<T: Element, const HEIGHT: usize> Chain<'_, T, HEIGHT> {
    /// Adds the products of the whole words, and asks for so many lines of the next panel in each.
    #[inline(always)]
    unsafe fn add_words<S: Simd, const LINES: usize>(
        &self,
        words: &Words<T>,
        sums: &mut [[S::F32; VECTORS]; HEIGHT],
    ) {
        for i in 0..self.len {
            let ahead = self.ahead.wrapping_add(i * self.at.pace.ahead_per_word);
            for line in 0..LINES {
                prefetch_far(ahead.wrapping_add(line * LINE_BYTES));
            }
            // SAFETY: the word exists.
            unsafe { words.add_products::<S, HEIGHT>(i, sums) }
        }
    }

    #[inline(always)]
    unsafe fn add_totals<S: Simd>(&self, sums: &mut [[S::F32; VECTORS]; HEIGHT]) {
        for row in 0..HEIGHT {
            let totals = totals_at::<S>(self.totals, row);
            for vector in 0..VECTORS {
                // SAFETY: the chain before has written them.
                let total = unsafe { S::load(totals[vector]) };
                sums[row][vector] = unsafe { S::add(total, sums[row][vector]) };
            }
        }
    }

    #[inline(always)]
    unsafe fn keep<S: Simd>(&self, sums: [[S::F32; VECTORS]; HEIGHT]) {
        for row in 0..HEIGHT {
            let totals = totals_at::<S>(self.totals, row);
            for vector in 0..VECTORS {
                // SAFETY: the totals have room for a tile.
                unsafe { S::store(totals[vector], sums[row][vector]) }
            }
        }
    }

    /// Adds the summands and writes the results of a whole panel.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, sums: &mut [[S::F32; VECTORS]; HEIGHT]) {
        let Tiles { summands, shape, output, .. } = self.tiles;
        let column = self.at.panel * VECTORS * S::LANES;
        // SAFETY: rows and columns exist.
        unsafe {
            if let Some(bias) = summands.bias {
                for vector in 0..VECTORS {
                    let bias = T::load::<S>(bias.add(column + vector * S::LANES));
                    for row in 0..HEIGHT {
                        sums[row][vector] = S::add(sums[row][vector], bias);
                    }
                }
            }
            if let Some(residual) = summands.residual {
                let from = residual.row(self.at.row).add(column);
                for row in 0..HEIGHT {
                    for vector in 0..VECTORS {
                        let from = from.add(row * residual.stride + vector * S::LANES);
                        sums[row][vector] = S::add(sums[row][vector], T::load::<S>(from));
                    }
                }
            }
            let to = output.pointer().add(self.at.row * shape.out_features + column);
            for row in 0..HEIGHT {
                for vector in 0..VECTORS {
                    let to = to.add(row * shape.out_features + vector * S::LANES);
                    T::store::<S>(to, sums[row][vector]);
                }
            }
        }
    }
}

/// Words of the rows of a tile and of a panel.
struct Words<T> {
    input: *const T,
    /// From row to row.
    stride: usize,
    weight: *const f32,
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl<T: Element> Words<T> {
    #[inline(always)]
    unsafe fn add_products<S: Simd, const HEIGHT: usize>(
        &self,
        i: usize,
        sums: &mut [[S::F32; VECTORS]; HEIGHT],
    ) {
        // SAFETY: the word exists.
        let word =
            |row: *const T| unsafe { row.add(i * T::PER_WORD).cast::<f32>().read_unaligned() };
        // SAFETY: the caller's condition.
        unsafe { self.add::<S, HEIGHT>(i, word, sums) }
    }

    /// Word `i`, of which only the first element exists.
    #[inline(always)]
    unsafe fn add_cut_word<S: Simd, const HEIGHT: usize>(
        &self,
        i: usize,
        sums: &mut [[S::F32; VECTORS]; HEIGHT],
    ) {
        // SAFETY: the element exists.
        let word = |row: *const T| unsafe { (*row.add(i * T::PER_WORD)).word() };
        // SAFETY: the caller's condition.
        unsafe { self.add::<S, HEIGHT>(i, word, sums) }
    }

    /// Adds the products of the panel's word `i` with a word of each row.
    #[inline(always)]
    unsafe fn add<S: Simd, const HEIGHT: usize>(
        &self,
        i: usize,
        word: impl Fn(*const T) -> f32,
        sums: &mut [[S::F32; VECTORS]; HEIGHT],
    ) {
        // SAFETY: the caller's condition.
        unsafe {
            let from = self.weight.add(i * VECTORS * S::LANES);
            let weights = [S::load(from), S::load(from.add(S::LANES))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = S::splat(word(self.input.wrapping_add(row * self.stride)));
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = T::mul_add_words::<S>(factor, weight, *sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::Bf16;

    fn check<T: Element>(depth: usize) {
        let chain = Pace::new::<T>(depth, 0, 1).chain;
        let num_chains = depth.div_ceil(chain.max(1));
        assert!(chain <= max_chain::<T>());
        assert_eq!(num_chains, depth.div_ceil(max_chain::<T>()), "{depth} words: more than needed");
        // Of equal length, but for the last one.
        assert!(num_chains * chain < depth + chain.max(1));
        assert!(num_chains * chain <= depth + num_chains);
    }

    #[test]
    fn chains_are_equal_and_no_more_than_needed() {
        for depth in (0..700).chain([4_096, 28_672, 50_881]) {
            check::<f32>(depth);
            check::<Bf16>(depth);
        }
    }

    #[test]
    fn the_whole_next_panel_is_asked_for() {
        for (depth, panel_bytes, num_tiles) in [(288, 36_864, 1), (288, 36_864, 11), (1, 64, 3)] {
            let pace = Pace::new::<Bf16>(depth, panel_bytes, num_tiles);
            assert!(pace.ahead_per_word * depth * num_tiles >= panel_bytes);
            assert!(pace.ahead_per_word <= 2 * LINE_BYTES, "more than two lines a word");
        }
    }
}
