//! Memory for what lies between kernels.

use std::collections::TryReserveError;

/// Memory for what lies between the kernels of layers and of a model, used again by the next ones.
#[derive(Debug, Default)]
pub struct Workspace {
    pub(super) of_layer: Lines,
    pub(super) of_model: Lines,
}

/// Whole cache lines, so that vectors do not straddle two.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<Line>);

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

const LINE_BYTES: usize = 64;

impl Lines {
    /// Makes room for arrays of so many elements.
    pub(super) fn reserve<T>(&mut self, lens: &[usize]) -> Result<(), TryReserveError> {
        let needed = lens.iter().map(|&len| num_lines::<T>(len)).sum();
        if self.0.len() < needed {
            self.0.clear();
            self.0.try_reserve_exact(needed)?;
            self.0.resize(needed, Line([0; LINE_BYTES]));
        }
        Ok(())
    }

    /// Arrays of so many elements, each from a line's begin on, for which there is room.
    pub(super) fn arrays<T, const N: usize>(&mut self, lens: [usize; N]) -> [*mut T; N] {
        let first = self.0.as_mut_ptr();
        let mut end = 0;
        lens.map(|len| {
            let start = end;
            end += num_lines::<T>(len);
            debug_assert!(end <= self.0.len());
            first.wrapping_add(start).cast()
        })
    }
}

/// Lines of so many elements.
fn num_lines<T>(len: usize) -> usize {
    (len * size_of::<T>()).div_ceil(LINE_BYTES)
}
