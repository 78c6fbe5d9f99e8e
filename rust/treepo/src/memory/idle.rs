//! Who loses memory first: leaves before waiting paths, unimportant before important.

use std::collections::BinaryHeap;

use super::path::{Rank, Use};

/// An idle path that may have something to give. The largest goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Idle {
    pub(super) usage: Use,
    pub(super) rank: Rank,
    /// That of the tree when the path was offered.
    pub(super) epoch: u32,
}

/// What an idle path is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Give {
    /// Blocks that nobody else holds, one by one from the end; leaves give up shared ones too.
    Own = 0,
    /// Its hold on blocks that others hold as well.
    Shared = 1,
}

impl Idle {
    /// What marks such an entry on its path.
    pub(super) fn bit(&self, give: Give) -> u8 {
        1 << (2 * give as u8 + u8::from(self.usage == Use::Finished))
    }
}

/// Idle paths in the order of eviction. An entry that is out of date stays until it comes up or
/// until too many are; each path has at most one entry a heap and usage.
#[derive(Debug, Clone, Default)]
pub(super) struct IdleHeaps {
    heaps: [BinaryHeap<Idle>; 2],
    num_stale: usize,
}

impl IdleHeaps {
    pub(super) fn push(&mut self, give: Give, idle: Idle) {
        self.heaps[give as usize].push(idle);
    }

    pub(super) fn peek(&self, give: Give) -> Option<Idle> {
        self.heaps[give as usize].peek().copied()
    }

    pub(super) fn pop(&mut self, give: Give) {
        self.heaps[give as usize].pop();
    }

    /// Says that entries are out of date for good. Sweeps when half of all are.
    pub(super) fn note_stale(&mut self, num: usize, is_valid: impl Fn(&Idle) -> bool) {
        self.num_stale += num;
        let len: usize = self.heaps.iter().map(BinaryHeap::len).sum();
        if self.num_stale > 64 && 2 * self.num_stale > len {
            self.heaps.iter_mut().for_each(|heap| heap.retain(&is_valid));
            self.num_stale = 0;
        }
    }
}
