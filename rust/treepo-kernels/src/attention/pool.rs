//! Addresses within the pool.

use super::{Buffers, Shape, padded_value_dim};

/// The pool of one layer.
pub(super) struct Pool<T> {
    keys: *const T,
    values: *const T,
    num_kv_heads: usize,
    pub(super) block_size: usize,
    pub(super) key_dim: usize,
    pub(super) value_dim: usize,
    /// Elements from one value to the next.
    pub(super) value_stride: usize,
}

impl<T> Pool<T> {
    pub(super) fn new(block_size: usize, shape: Shape, buffers: &Buffers<T>) -> Self {
        Self {
            keys: buffers.keys,
            values: buffers.values,
            num_kv_heads: shape.num_kv_heads,
            block_size,
            key_dim: shape.key_dim,
            value_dim: shape.value_dim,
            value_stride: padded_value_dim(shape.value_dim),
        }
    }

    /// The `[key_dim, block_size]` keys of a block and head.
    ///
    /// # Safety
    /// The pool has the block and head.
    #[allow(clippy::inline_always, reason = "inlined into functions that enable instructions")]
    #[inline(always)]
    pub(super) unsafe fn keys(&self, block: usize, head: usize) -> *const T {
        let size = self.key_dim * self.block_size;
        // SAFETY: the caller's condition.
        unsafe { self.keys.add((block * self.num_kv_heads + head) * size) }
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
