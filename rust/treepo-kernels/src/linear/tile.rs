//! Products of a few rows with a panel, all sums in registers.

use std::ops::Range;

use super::pack::VECTORS;
use super::{LinearShape, Summands};
use crate::element::Element;
use crate::elementwise::{Output, Rows};
use crate::simd::{Kernel, Simd, prefetch_far};

/// Rows of a tile: their sums, a panel's vectors and one factor fill sixteen registers.
pub(super) const MAX_ROWS: usize = 6;
const LINE_BYTES: usize = 64;

/// Rows times panels.
pub(super) struct Tiles<T> {
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
        let num_tiles = num_rows.div_ceil(MAX_ROWS);
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
        let depth = self.shape.in_features;
        // SAFETY: the caller's condition.
        unsafe {
            let weight = self.weight.data.add(at.panel * self.weight.stride);
            let input = self.input.data.add(at.row * self.input.stride);
            let mut sums = [[S::splat(0.0); VECTORS]; HEIGHT];
            // Meanwhile the next panel comes from memory, a part of it in each tile.
            let next = weight.wrapping_add(self.weight.stride).cast::<u8>();
            let num_lines = self.weight.stride * size_of::<T>() / LINE_BYTES;
            let line = |tile: usize| tile * num_lines / at.num_tiles;
            let num_asked = (line(at.tile + 1) - line(at.tile)).clamp(1, depth);
            let ahead = next.wrapping_add(line(at.tile) * LINE_BYTES);
            let stride = depth / num_asked;
            for asked in 0..num_asked {
                prefetch_far(ahead.wrapping_add(asked * LINE_BYTES));
                for i in asked * stride..(asked + 1) * stride {
                    self.add_products::<S, HEIGHT>(input, weight, i, &mut sums);
                }
            }
            for i in num_asked * stride..depth {
                self.add_products::<S, HEIGHT>(input, weight, i, &mut sums);
            }
            for (row, sums) in sums.into_iter().enumerate() {
                self.finish::<S>(at.row + row, at.panel, sums);
            }
        }
    }

    #[inline(always)]
    unsafe fn add_products<S: Simd, const HEIGHT: usize>(
        &self,
        input: *const T,
        weight: *const T,
        i: usize,
        sums: &mut [[S::F32; VECTORS]; HEIGHT],
    ) {
        // SAFETY: the caller's condition.
        unsafe {
            let from = weight.add(i * VECTORS * S::LANES);
            let left = T::load::<S>(from);
            let right = T::load::<S>(from.add(S::LANES));
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = S::splat((*input.add(row * self.input.stride + i)).to_f32());
                sums[0] = S::mul_add(factor, left, sums[0]);
                sums[1] = S::mul_add(factor, right, sums[1]);
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
