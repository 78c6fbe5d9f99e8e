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
/// Words that are summed one after another; the sums of such chains are added up. A sum of
/// 1,536 products of f32 then has a quarter of one chain's rounding error. Of bf16, whose results are
/// rounded far more coarsely, a chain has as many words twice.
fn chain<T: Element>() -> usize {
    64 * T::PER_WORD
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
        for panel in self.panels.clone() {
            for tile in 0..num_tiles {
                let first = |tile: usize| tile * num_rows / num_tiles;
                let height = first(tile + 1) - first(tile);
                let at = At { panel, row: self.rows.start + first(tile), tile, num_tiles };
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
    num_tiles: usize,
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl<T: Element> Tiles<T> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const HEIGHT: usize>(&self, at: At) {
        // Words, the last of which may be cut.
        let depth = self.shape.in_features.div_ceil(T::PER_WORD);
        let whole = self.shape.in_features / T::PER_WORD;
        let mut totals = [MaybeUninit::<f32>::uninit(); MAX_ROWS * VECTORS * MAX_LANES];
        if depth == 0 {
            totals.fill(MaybeUninit::new(0.0)); // No chain writes them.
        }
        let totals = totals.as_mut_ptr().cast::<f32>();
        // Meanwhile the next panel comes from memory, a part of it in each tile.
        let next = self.weight.row(at.panel + 1).cast::<u8>();
        let num_lines = self.weight.stride * size_of::<T>() / LINE_BYTES;
        let first_line = at.tile * num_lines / at.num_tiles;
        let num_asked = (at.tile + 1) * num_lines / at.num_tiles - first_line;
        let width = VECTORS * S::LANES;
        for first in (0..depth).step_by(chain::<T>()) {
            let end = depth.min(first + chain::<T>());
            let [ask, ask_end] = [first, end].map(|i| i * num_asked / depth);
            let chain = Chain::<T, HEIGHT> {
                len: whole.min(end) - first,
                is_cut: whole < end,
                input: Rows {
                    data: self.input.row(at.row).wrapping_add(first * T::PER_WORD),
                    ..self.input
                },
                weight: self.weight.row(at.panel).cast::<f32>().wrapping_add(first * width),
                ahead: next.wrapping_add((first_line + ask) * LINE_BYTES),
                num_asked: ask_end - ask,
                is_first: first == 0,
                totals,
            };
            // SAFETY: inputs, rows and panel exist, and the totals are this function's.
            unsafe { S::call(chain) }
        }
        for row in 0..HEIGHT {
            // SAFETY: totals of `HEIGHT` rows have been written.
            unsafe {
                let sums = sums_at::<S>(totals, row);
                self.finish::<S>(at.row + row, at.panel, sums.map(|sum| S::load(sum)));
            }
        }
    }

    /// Adds the summands and writes a row's results of a panel.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, row: usize, panel: usize, sums: [S::F32; VECTORS]) {
        let width = self.shape.out_features;
        for (vector, mut sum) in sums.into_iter().enumerate() {
            let column = (panel * VECTORS + vector) * S::LANES;
            if column >= width {
                return;
            }
            let count = S::LANES.min(width - column);
            // SAFETY: `count` elements from `column` on exist.
            unsafe {
                if let Some(bias) = self.summands.bias {
                    sum = S::add(sum, T::load_first::<S>(bias.add(column), count));
                }
                if let Some(residual) = self.summands.residual {
                    let from = residual.data.add(row * residual.stride + column);
                    sum = S::add(sum, T::load_first::<S>(from, count));
                }
                let to = self.output.pointer().add(row * width + column);
                T::store_first::<S>(to, count, sum);
            }
        }
    }
}

/// The totals of a row, a vector each.
fn sums_at<S: Simd>(totals: *mut f32, row: usize) -> [*mut f32; VECTORS] {
    std::array::from_fn(|vector| totals.wrapping_add((row * VECTORS + vector) * S::LANES))
}

/// Products of a few words of a tile: a function of its own, as the sums fill the registers.
struct Chain<T, const HEIGHT: usize> {
    /// Whole words.
    len: usize,
    /// Whether the first element of another word follows.
    is_cut: bool,
    input: Rows<T>,
    weight: *const f32,
    ahead: *const u8,
    num_asked: usize,
    /// Whether nothing has been added up so far.
    is_first: bool,
    /// What the sums are added to.
    totals: *mut f32,
}

impl<T: Element, const HEIGHT: usize> Kernel for Chain<T, HEIGHT> {
    type Output = ();

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut sums = [[unsafe { S::splat(0.0) }; VECTORS]; HEIGHT];
        let stride = self.len / self.num_asked.max(1);
        for asked in 0..self.num_asked {
            prefetch_far(self.ahead.wrapping_add(asked * LINE_BYTES));
            for i in asked * stride..(asked + 1) * stride {
                // SAFETY: the caller's condition.
                unsafe { self.add_products::<S>(i, &mut sums) }
            }
        }
        for i in self.num_asked * stride..self.len {
            // SAFETY: the caller's condition.
            unsafe { self.add_products::<S>(i, &mut sums) }
        }
        if self.is_cut {
            // SAFETY: the caller's condition.
            unsafe { self.add_cut_word::<S>(&mut sums) }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (total, sum) in sums_at::<S>(self.totals, row).into_iter().zip(sums) {
                // SAFETY: the totals have room for the tile, and the first chain writes them.
                unsafe {
                    S::store(total, if self.is_first { sum } else { S::add(S::load(total), sum) });
                }
            }
        }
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl<T: Element, const HEIGHT: usize> Chain<T, HEIGHT> {
    #[inline(always)]
    unsafe fn add_products<S: Simd>(&self, i: usize, sums: &mut [[S::F32; VECTORS]; HEIGHT]) {
        // SAFETY: the word exists.
        let word =
            |row: *const T| unsafe { row.add(i * T::PER_WORD).cast::<f32>().read_unaligned() };
        // SAFETY: the caller's condition.
        unsafe { self.add::<S>(i, word, sums) }
    }

    /// The first element of the word behind the last whole one.
    #[inline(always)]
    unsafe fn add_cut_word<S: Simd>(&self, sums: &mut [[S::F32; VECTORS]; HEIGHT]) {
        // SAFETY: the element exists.
        let word = |row: *const T| unsafe { (*row.add(self.len * T::PER_WORD)).word() };
        // SAFETY: the caller's condition.
        unsafe { self.add::<S>(self.len, word, sums) }
    }

    /// Adds the products of the panel's word `i` with a word of each row.
    #[inline(always)]
    unsafe fn add<S: Simd>(
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
                let factor = S::splat(word(self.input.row(row)));
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = T::mul_add_words::<S>(factor, weight, *sum);
                }
            }
        }
    }
}
