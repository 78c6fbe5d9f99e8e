//! Keys and values of a step on their way into the pool.

use std::ops::Range;

use super::pool::Pool;
use super::step::NOWHERE;
use super::{Buffers, Shape, Step};
use crate::element::Element;
use crate::elementwise::nanos_of_bytes;
use crate::team::Team;

/// Bytes that one task writes.
const TASK_BYTES: usize = 1 << 15;

/// The writing of a step's keys and values, as tasks.
pub(super) struct Writing<'a, T> {
    pub(super) step: &'a Step,
    pub(super) shape: Shape,
    pub(super) buffers: &'a Buffers<T>,
}

impl<T: Element> Writing<'_, T> {
    fn bytes_per_token(&self) -> usize {
        let Shape { num_kv_heads, key_dim, value_dim, .. } = self.shape;
        (num_kv_heads * (key_dim + value_dim) * size_of::<T>()).max(1)
    }

    fn tokens_per_task(&self) -> usize {
        (TASK_BYTES / self.bytes_per_token()).max(1)
    }

    pub(super) fn num_tasks(&self) -> usize {
        self.step.slots.len().div_ceil(self.tokens_per_task())
    }

    /// Does one task.
    ///
    /// # Safety
    /// As [`super::write`].
    pub(super) unsafe fn task(&self, index: usize) {
        let first = index * self.tokens_per_task();
        let tokens = first..self.step.slots.len().min(first + self.tokens_per_task());
        // SAFETY: the caller's condition; slots are distinct, so tasks write different elements.
        unsafe { store(self.step, self.shape, self.buffers, tokens) }
    }

    /// Does all tasks.
    ///
    /// # Safety
    /// As [`super::write`].
    pub(super) unsafe fn run(&self, team: &Team) {
        // SAFETY: the caller's condition.
        let task = |index| unsafe { self.task(index) };
        let num_bytes = 2 * self.step.slots.len() * self.bytes_per_token();
        if team.is_worth_sharing(nanos_of_bytes(num_bytes)) {
            team.run(self.num_tasks(), task);
        } else {
            (0..self.num_tasks()).for_each(task);
        }
    }
}

/// Writes the keys and values of some tokens.
///
/// # Safety
/// As [`super::attend`]; nobody else writes these tokens' slots.
unsafe fn store<T: Element>(step: &Step, shape: Shape, buffers: &Buffers<T>, tokens: Range<usize>) {
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
        for word in 0..pool.key_words {
            for i in 0..run.count {
                let from = key.add(i * buffers.key.token_stride);
                let to = to.add(word * pool.block_size + i);
                to.write_unaligned(T::word_at(from, word, pool.key_dim));
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
