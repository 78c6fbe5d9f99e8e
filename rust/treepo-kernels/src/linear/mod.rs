//! Linear layers with packed weights: y = x W^T + b, and a sum on the way.
//!
//! A weight is packed once into panels of [`panel_width`] outputs, each contiguous in the order in
//! which it is read. A result sums its products in the order of the inputs, whatever the number of
//! rows, tasks and threads: a row has the same bits in every batch.

use std::ops::Range;

use crate::element::Element;
use crate::elementwise::{Output, Rows};
use crate::simd::{Level, run};
use crate::team::Team;

mod pack;
mod tile;

use pack::panel_len;
pub use pack::{pack, packed_len, panel_width};
use tile::{Tiles, max_rows};

/// Inputs and outputs of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// Elements of an input row.
    pub in_features: usize,
    /// Elements of an output row.
    pub out_features: usize,
}

/// What is added to the products before they are rounded.
#[derive(Debug, Clone, Copy)]
pub struct Summands<T> {
    /// One element an output.
    pub bias: Option<*const T>,
    /// A row of outputs for each row.
    pub residual: Option<Rows<T>>,
}

// SAFETY: they are only read, and whoever passes them to a kernel answers for their elements.
unsafe impl<T: Sync> Sync for Summands<T> {}

/// Rows that a thread keeps in its cache while it reads weights, in bytes.
const BLOCK_BYTES: usize = 256 << 10;
/// Tiles of the last parts.
const LAST_TILES: usize = 2;
const PRODUCTS_PER_NANO: usize = 32;

/// Multiplies rows with a packed weight.
///
/// # Safety
/// `input` holds `num_rows` rows of `in_features` elements, `weight` what [`pack`] wrote at this
/// level, the summands rows of `out_features`, and `output` has room for
/// `num_rows * out_features`; no other thread writes them meanwhile. `output` may be the residual
/// where that is contiguous, and overlaps nothing else.
#[allow(clippy::too_many_arguments, reason = "buffers of one call")]
pub unsafe fn linear<T: Element>(
    team: &Team,
    level: Level,
    num_rows: usize,
    shape: LinearShape,
    input: Rows<T>,
    weight: *const T,
    summands: Summands<T>,
    output: *mut T,
) {
    let weight = Rows { data: weight, stride: panel_len::<T>(level, shape) };
    let output = Output(output);
    let num_panels = shape.out_features.div_ceil(panel_width(level));
    let max_rows = max_rows::<T>(level);
    let work = |rows: Range<usize>, panels: Range<usize>| {
        run(level, Tiles { max_rows, shape, rows, panels, input, weight, summands, output });
    };
    let num_products = num_rows * shape.in_features * shape.out_features;
    if !team.is_worth_sharing(num_products / PRODUCTS_PER_NANO) {
        return work(0..num_rows, 0..num_panels);
    }
    let row_bytes = shape.in_features * size_of::<T>();
    let fair = num_rows.div_ceil((num_rows * row_bytes).div_ceil(BLOCK_BYTES).max(1));
    let rows_per_block = fair.next_multiple_of(max_rows);
    let blocks = (0..num_rows).step_by(rows_per_block);
    let blocks = blocks.map(|first| first..num_rows.min(first + rows_per_block));
    let parts = parts(blocks, num_panels, LAST_TILES * max_rows, team.num_threads());
    team.run(parts.len(), |index| {
        let Part { rows, panels } = parts[index].clone();
        work(rows, panels);
    });
}

/// Some panels for some rows.
#[derive(Debug, Clone)]
struct Part {
    rows: Range<usize>,
    panels: Range<usize>,
}

/// Divides products among threads: parts get shorter, so that threads end at about the same time. The
/// last of them are `last_rows` of a single panel.
fn parts(
    blocks: impl Iterator<Item = Range<usize>>,
    num_panels: usize,
    last_rows: usize,
    num_threads: usize,
) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut blocks = blocks.peekable();
    while let Some(rows) = blocks.next() {
        let num_last = if blocks.peek().is_none() { num_threads.min(num_panels) } else { 0 };
        let shared = num_panels - num_last;
        let runs = runs(shared, num_threads).into_iter();
        parts.extend(runs.map(|panels| Part { rows: rows.clone(), panels }));
        for panel in shared..num_panels {
            let firsts = rows.clone().step_by(last_rows);
            parts.extend(firsts.map(|first| Part {
                rows: first..rows.end.min(first + last_rows),
                panels: panel..panel + 1,
            }));
        }
    }
    parts
}

/// Cuts panels into runs that get shorter, so that threads end at about the same time.
fn runs(num_panels: usize, num_threads: usize) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let mut first = 0;
    while first < num_panels {
        let end = first + (num_panels - first).div_ceil(2 * num_threads);
        runs.push(first..end);
        first = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_row_and_panel_once() {
        for (num_rows, block, num_panels, last_rows, num_threads) in
            [(128, 72, 18, 24, 2), (1, 12, 1, 24, 2), (50, 50, 3, 12, 8), (100, 12, 7, 24, 1)]
        {
            let blocks = (0..num_rows).step_by(block);
            let blocks = blocks.map(|first: usize| first..num_rows.min(first + block));
            let mut times = vec![0; num_rows * num_panels];
            let parts = parts(blocks, num_panels, last_rows, num_threads);
            for Part { rows, panels } in &parts {
                for row in rows.clone() {
                    for panel in panels.clone() {
                        times[row * num_panels + panel] += 1;
                    }
                }
            }
            assert!(times.iter().all(|&times| times == 1));
            let last = parts.last().expect("there is work");
            assert!(last.rows.len() <= last_rows && last.panels.len() == 1);
        }
    }

    #[test]
    fn runs_cover_all_panels_and_get_shorter() {
        for (num_panels, num_threads) in [(0, 2), (1, 2), (36, 2), (3072, 16), (7, 1)] {
            let runs = runs(num_panels, num_threads);
            assert_eq!(runs.iter().map(Range::len).sum::<usize>(), num_panels);
            assert!(runs.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(runs.windows(2).all(|pair| pair[0].len() >= pair[1].len()));
        }
    }
}
