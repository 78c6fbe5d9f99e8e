//! Kernels that read and write each element once: norms, rotary positions, gated activations, rows by
//! index.
//!
//! Elements are widened to f32, and a result is rounded once, when it is stored.

use std::ops::Range;

use crate::team::Team;

mod gate;
mod gather;
mod norm;
mod rope;

pub use gate::{Activation, gate};
pub use gather::gather;
pub use norm::{RmsNorm, rms_norm, rms_norm_heads};
pub use rope::{RopeShape, Strided3, rope, rope_pair};

/// Rows of contiguous elements.
#[derive(Debug, Clone, Copy)]
pub struct Rows<T> {
    /// First element of the first row.
    pub data: *const T,
    /// Elements from one row's begin to the next one's.
    pub stride: usize,
}

// SAFETY: it is only read, and whoever passes it to a kernel answers for its elements.
unsafe impl<T: Sync> Sync for Rows<T> {}

impl<T> Rows<T> {
    /// First element of a row; a method for the reason of [`Output::pointer`].
    pub(crate) fn row(self, index: usize) -> *const T {
        self.data.wrapping_add(index * self.stride)
    }
}

/// Where a kernel's tasks write rows that do not overlap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output<T>(pub(crate) *mut T);

// SAFETY: tasks write elements of their own.
unsafe impl<T: Send> Sync for Output<T> {}

impl<T> Output<T> {
    /// The pointer, by a method: a closure that names the field would capture only that.
    pub(crate) fn pointer(self) -> *mut T {
        self.0
    }
}

/// A task is at least as long, so that taking it costs nothing beside it.
const TASK_NANOS: usize = 20_000;
const BYTES_PER_NANO: usize = 10;

/// What one thread takes for reading and writing so many bytes, in ns.
pub(crate) fn nanos_of_bytes(bytes: usize) -> usize {
    bytes / BYTES_PER_NANO
}

/// Spreads rows over the team in tasks that are worth it; `work` gets ranges of rows.
pub(crate) fn spread(
    team: &Team,
    num_rows: usize,
    nanos_per_row: usize,
    work: impl Fn(Range<usize>) + Sync,
) {
    let nanos_per_row = nanos_per_row.max(1);
    if num_rows == 1 || !team.is_worth_sharing(num_rows.saturating_mul(nanos_per_row)) {
        return work(0..num_rows);
    }
    let fair = num_rows.div_ceil(team.num_threads());
    let rows_per_task = TASK_NANOS.div_ceil(nanos_per_row).min(fair);
    team.run(num_rows.div_ceil(rows_per_task), |task| {
        let first = task * rows_per_task;
        work(first..num_rows.min(first + rows_per_task));
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn ranges(num_rows: usize, nanos_per_row: usize) -> Vec<Range<usize>> {
        let seen = Mutex::new(Vec::new());
        let team = Team::parked(3);
        spread(&team, num_rows, nanos_per_row, |rows| seen.lock().expect("no panic").push(rows));
        let mut seen = seen.into_inner().expect("no panic");
        seen.sort_by_key(|rows| rows.start);
        seen
    }

    #[test]
    fn little_work_stays_with_the_caller() {
        assert_eq!(ranges(39, 1000), vec![0..39; 1]);
        assert_eq!(ranges(1, 1_000_000), vec![0..1; 1]);
        assert_eq!(ranges(0, 1000), vec![0..0; 1]);
    }

    #[test]
    fn much_work_is_cut_into_tasks_that_cover_it() {
        for (num_rows, nanos) in [(40, 1000), (41, 1000), (7, 50_000), (100_000, 0), (999, 777)] {
            let ranges = ranges(num_rows, nanos);
            assert!(ranges.len() > 1);
            let ends = ranges.windows(2).all(|pair| pair[0].end == pair[1].start);
            assert!(ends && ranges[0].start == 0 && ranges[ranges.len() - 1].end == num_rows);
        }
    }
}
