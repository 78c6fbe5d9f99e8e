//! Memory that a thread uses again in each task.

use std::cell::RefCell;

use super::{Shape, TILE, padded_key_dim, padded_value_dim};

/// Queries of an item that are in work at a time.
pub(super) const MAX_QUERIES: usize = 256;
/// Queries of several key heads that are in work at a time: few enough that they stay in the cache.
pub(super) const MAX_TOGETHER: usize = 64;

/// One cache line, so that vectors do not straddle two.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    query: Vec<Line>,
    wide_query: Vec<Line>,
    mixed: Vec<Line>,
    keys: Vec<Line>,
    values: Vec<Line>,
    peak: Vec<Line>,
    total: Vec<Line>,
    position: Vec<usize>,
}

/// Addresses of the buffers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    /// `[queries, words of a key]`.
    pub(super) query: *mut f32,
    /// `[queries, padded key_dim]`.
    pub(super) wide_query: *mut f32,
    /// `[queries, padded value_dim]` weighted sums of values.
    pub(super) mixed: *mut f32,
    /// `[queries]` largest scores.
    pub(super) peak: *mut f32,
    /// `[queries]` sums of the weights.
    pub(super) total: *mut f32,
    /// `[queries]`.
    pub(super) position: *mut usize,
    /// `[padded key_dim, TILE]`.
    pub(super) keys: *mut f32,
    /// `[TILE, padded value_dim]`.
    pub(super) values: *mut f32,
}

impl Scratch {
    /// Grows the buffers to the layer's needs.
    pub(super) fn area(&mut self, shape: Shape) -> Area {
        let key_dim = padded_key_dim(shape.key_dim);
        let value_dim = padded_value_dim(shape.value_dim);
        self.position.resize(self.position.len().max(MAX_QUERIES), 0);
        Area {
            query: grow(&mut self.query, MAX_QUERIES * key_dim),
            wide_query: grow(&mut self.wide_query, MAX_QUERIES * key_dim),
            mixed: grow(&mut self.mixed, MAX_QUERIES * value_dim),
            peak: grow(&mut self.peak, MAX_QUERIES),
            total: grow(&mut self.total, MAX_QUERIES),
            position: self.position.as_mut_ptr(),
            keys: grow(&mut self.keys, key_dim * TILE),
            values: grow(&mut self.values, TILE * value_dim),
        }
    }
}

fn grow(lines: &mut Vec<Line>, num_floats: usize) -> *mut f32 {
    let needed = num_floats.div_ceil(16);
    if lines.len() < needed {
        lines.resize(needed, Line([0.0; 16]));
    }
    lines.as_mut_ptr().cast()
}

/// Calls a function with the thread's buffers.
pub(super) fn with<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(work)
}
