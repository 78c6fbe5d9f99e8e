//! Keys and values of a step on their way into the pool.

use std::ops::Range;

use super::pool::Pool;
use super::step::NOWHERE;
use super::{Buffers, Shape, Step};
use crate::element::Element;

/// Bytes that one task writes.
pub(super) const TASK_BYTES: usize = 1 << 17;
/// Below this many bytes the caller writes alone: waking threads would take longer.
pub(super) const SMALL_BYTES: usize = 1 << 16;

/// Writes the keys and values of some tokens.
///
/// # Safety
/// As [`super::attend`]; nobody else writes these tokens' slots.
pub(super) unsafe fn store<T: Element>(
    step: &Step,
    shape: Shape,
    buffers: &Buffers<T>,
    tokens: Range<usize>,
) {
    let pool = Pool::new(step.block_size, shape, buffers);
    let mut first = tokens.start;
    while first < tokens.end {
        if step.slots[first] == NOWHERE {
            first += 1;
            continue;
        }
        let count = run_len(&step.slots[first..tokens.end], step.block_size);
        let slot = step.slots[first];
        for head in 0..shape.num_kv_heads {
            // SAFETY: slots lie within the pool, the caller's condition for the rest.
            unsafe { store_run(&pool, buffers, Run { first, count, slot, head }) }
        }
        first += count;
    }
}

/// Neighbouring tokens in neighbouring slots of one block.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    count: usize,
    slot: usize,
    head: usize,
}

/// How many of the first slots are neighbours within a block.
fn run_len(slots: &[usize], block_size: usize) -> usize {
    let most = (block_size - slots[0] % block_size).min(slots.len());
    (1..most).find(|&i| slots[i] != slots[0] + i).unwrap_or(most)
}

/// # Safety
/// As [`store`].
unsafe fn store_run<T: Element>(pool: &Pool<T>, buffers: &Buffers<T>, run: Run) {
    let (block, offset) = (run.slot / pool.block_size, run.slot % pool.block_size);
    // SAFETY: the run's slots and tokens exist.
    unsafe {
        let key = buffers.key.at(run.first, run.head);
        let to = pool.keys(block, run.head).add(offset).cast_mut();
        for d in 0..pool.key_dim {
            for i in 0..run.count {
                *to.add(d * pool.block_size + i) = *key.add(i * buffers.key.token_stride + d);
            }
        }
        let value = buffers.value.at(run.first, run.head);
        let to = pool.values(block, run.head).add(offset * pool.value_stride).cast_mut();
        for i in 0..run.count {
            let from = value.add(i * buffers.value.token_stride);
            from.copy_to_nonoverlapping(to.add(i * pool.value_stride), pool.value_dim);
        }
    }
}
