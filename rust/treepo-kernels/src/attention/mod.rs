//! Attention of the rows of one step over a paged pool of keys and values.
//!
//! A query walks the keys that it sees in tiles of `TILE` positions, which begin at multiples of
//! `TILE` whatever the blocks are. In each tile it computes the scores (each a sum over the
//! words of a key in their order), corrects its running maximum and sum (online softmax, Milakov and
//! Gimelshein 2018, <https://arxiv.org/abs/1805.02867>) and adds the values in the order of their
//! positions. So the bits of a result depend on the query and on what it sees, on nothing else:
//! not on the other queries of its row or step, on blocks, on sharing or on threads.
//!
//! Queries that see the same tile go through it together, several in registers at a time. Rows that
//! share blocks share their tiles this way (cascade attention without a merge of partial results).

mod ahead;
mod convert;
mod mix;
mod plan;
mod pool;
mod score;
mod scratch;
mod soften;
mod step;
mod store;
mod task;
mod tile;

use crate::element::Element;
use crate::simd::{self, Level};
use crate::team::Team;

pub use step::{Step, StepArrays, StepError};

/// Positions of a tile.
const TILE: usize = 64;

/// Heads of a layer and their dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Query heads, a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads; query head `h` reads head `h / (num_heads / num_kv_heads)`.
    pub num_kv_heads: usize,
    /// Elements of a query and of a key.
    pub key_dim: usize,
    /// Elements of a value and of an output.
    pub value_dim: usize,
}

impl Shape {
    /// Query heads that read one key head.
    fn ratio(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }
}

/// What one layer's attention computes.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Its heads.
    pub shape: Shape,
    /// Factor of the scores.
    pub scaling: f32,
    /// A query at position p sees the keys at positions above p - window; all where there is none.
    pub window: Option<usize>,
    /// Scores x become `softcap * tanh(x / softcap)`.
    pub softcap: Option<f32>,
    /// `[num_heads]` one more logit of each head, which takes weight and has no value.
    pub sinks: Option<&'a [f32]>,
}

/// A `[num_tokens, num_heads, dim]` array; the last dimension is contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Strided<T> {
    /// Its first element.
    pub data: *const T,
    /// Elements from one token to the next.
    pub token_stride: usize,
    /// Elements from one head to the next.
    pub head_stride: usize,
}

impl<T> Strided<T> {
    /// The vector of a token and head.
    ///
    /// # Safety
    /// Both are within the array.
    unsafe fn at(&self, token: usize, head: usize) -> *const T {
        // SAFETY: the caller's condition.
        unsafe { self.data.add(token * self.token_stride + head * self.head_stride) }
    }
}

/// The arrays of one layer in one step.
#[derive(Debug, Clone, Copy)]
pub struct Buffers<T> {
    /// `[num_tokens, num_heads, key_dim]`.
    pub query: Strided<T>,
    /// `[num_tokens, num_kv_heads, key_dim]`, the step's own keys.
    pub key: Strided<T>,
    /// `[num_tokens, num_kv_heads, value_dim]`, the step's own values.
    pub value: Strided<T>,
    /// `[num_tokens, num_heads, value_dim]`, contiguous.
    pub output: *mut T,
    /// The pool's keys `[num_blocks, num_kv_heads, padded_key_dim(key_dim) / n, block_size, n]`: words
    /// of `n` = [`Element::PER_WORD`] neighbouring numbers of a key, beside those of other keys; a zero
    /// fills up the last word.
    pub keys: *mut T,
    /// The pool's values `[num_blocks, num_kv_heads, block_size, padded_value_dim(value_dim)]`.
    pub values: *mut T,
}

// SAFETY: plain addresses; whoever reads and writes through them is unsafe and says why it may.
unsafe impl<T: Sync> Sync for Buffers<T> {}

/// Elements of a key in the pool: `key_dim`, or one more if that is odd. So it is whole words in every
/// format; of f32 the last row is not read then.
pub fn padded_key_dim(key_dim: usize) -> usize {
    key_dim.next_multiple_of(2)
}

/// Elements of a value in the pool: the next multiple of 16, so that a row is read in whole
/// vectors. What lies behind `value_dim` is never used.
pub fn padded_value_dim(value_dim: usize) -> usize {
    value_dim.next_multiple_of(16)
}

/// Writes the step's keys and values to their slots, then computes the output of every token.
///
/// Results are the same bits for any team, chunking and placement; levels may differ.
///
/// # Panics
/// If `num_heads` is no multiple of `num_kv_heads`, the window is 0, there are not as many sinks as heads, or the
/// processor does not have the level.
///
/// # Safety
/// The arrays have the sizes that [`Buffers`] gives for `layer.shape`, the step's tokens and the
/// blocks that [`Step::new`] was told; inputs, output and pool do not overlap; nobody else touches
/// output and pool meanwhile. The pool is initialised: any numbers, but for the zeros that fill up keys.
pub unsafe fn attend<T: Element>(
    team: &Team,
    level: Level,
    step: &Step,
    layer: &Layer<'_>,
    buffers: &Buffers<T>,
) {
    let shape = layer.shape;
    assert!(
        shape.num_kv_heads > 0 && shape.num_heads.is_multiple_of(shape.num_kv_heads),
        "{} query heads do not divide among {} key heads",
        shape.num_heads,
        shape.num_kv_heads
    );
    assert!(layer.window != Some(0), "a window of 0 hides every key: give at least 1, or none");
    if let Some(sinks) = layer.sinks {
        assert_eq!(sinks.len(), shape.num_heads, "there is one sink for each query head");
    }
    let work = plan::Work::new(step, shape, size_of::<T>());
    let writing = store::Writing { step, shape, buffers };
    // SAFETY: the caller's condition.
    let write = |index| unsafe { writing.task(index) };
    let attend = |index| {
        scratch::with(|scratch| {
            let range = work.items(index);
            simd::run(level, task::Items { step, layer, buffers, range, scratch });
        });
    };
    if work.is_small(team) {
        // SAFETY: the caller's condition.
        unsafe { writing.run(team) }
        (0..work.num_tasks()).for_each(attend);
    } else {
        team.run_in_order((writing.num_tasks(), write), (work.num_tasks(), attend));
    }
}

/// Writes the step's keys and values to their slots.
///
/// # Safety
/// As [`attend`]; query and output are not touched.
pub unsafe fn write<T: Element>(team: &Team, step: &Step, shape: Shape, buffers: &Buffers<T>) {
    // SAFETY: the caller's condition.
    unsafe { store::Writing { step, shape, buffers }.run(team) }
}
