//! Addresses within the pool.

use super::{Buffers, Shape, padded_key_dim, padded_value_dim};
use crate::element::Element;

/// The pool of one layer.
pub(super) struct Pool<T> {
    keys: *const T,
    values: *const T,
    num_kv_heads: usize,
    pub(super) block_size: usize,
    pub(super) key_dim: usize,
    /// Words of a key.
    pub(super) key_words: usize,
    pub(super) value_dim: usize,
    /// Elements from one value to the next.
    pub(super) value_stride: usize,
}

impl<T: Element> Pool<T> {
    pub(super) fn new(block_size: usize, shape: Shape, buffers: &Buffers<T>) -> Self {
        Self {
            keys: buffers.keys,
            values: buffers.values,
            num_kv_heads: shape.num_kv_heads,
            block_size,
            key_dim: shape.key_dim,
            key_words: shape.key_dim.div_ceil(T::PER_WORD),
            value_dim: shape.value_dim,
            value_stride: padded_value_dim(shape.value_dim),
        }
    }

    /// The `[padded_key_dim / PER_WORD, block_size]` words of the keys of a block and head.
    ///
    /// # Safety
    /// The pool has the block and head.
    #[allow(clippy::inline_always, reason = "inlined into functions that enable instructions")]
    #[inline(always)]
    pub(super) unsafe fn keys(&self, block: usize, head: usize) -> *const f32 {
        let size = padded_key_dim(self.key_dim) * self.block_size;
        // SAFETY: the caller's condition.
        unsafe { self.keys.add((block * self.num_kv_heads + head) * size).cast() }
    }

    /// The `[block_size, value_stride]` values of a block and head.
    ///
    /// # Safety
    /// The pool has the block and head.
    #[allow(clippy::inline_always, reason = "inlined into functions that enable instructions")]
    #[inline(always)]
    pub(super) unsafe fn values(&self, block: usize, head: usize) -> *const T {
        let size = self.value_stride * self.block_size;
        // SAFETY: the caller's condition.
        unsafe { self.values.add((block * self.num_kv_heads + head) * size) }
    }
}
