//! Chains of blocks: each block knows the one before it.

use super::BlockPool;
use crate::error::{Error, Result};
use crate::ids::BlockId;

/// Block 0 is never handed out, so it stands for "no block".
pub(super) const NO_BLOCK: BlockId = BlockId(0);

/// All blocks as a forest of chains with common fronts.
///
/// A holder is a path whose chain ends here, a block that comes next, or a copy. So a resident
/// block's predecessors are resident, and sharing a chain is one count at its end, at any length.
#[derive(Debug, Clone)]
pub(super) struct Chains {
    pub(super) pool: BlockPool,
    /// The block before each one; [`NO_BLOCK`] for the first of a chain.
    before: Vec<BlockId>,
}

impl Chains {
    pub(super) fn new(num_blocks: u32) -> Result<Self> {
        let pool = BlockPool::new(num_blocks)?;
        Ok(Self { before: vec![NO_BLOCK; num_blocks as usize], pool })
    }

    /// The block before this one.
    pub(super) fn before(&self, block: BlockId) -> BlockId {
        self.before[block.index()]
    }

    /// The block `steps` places before this one.
    pub(super) fn back(&self, block: BlockId, steps: u32) -> BlockId {
        (0..steps).fold(block, |block, _| self.before(block))
    }

    /// Adds a holder of the chain that ends here.
    pub(super) fn hold(&mut self, tail: BlockId) -> Result<()> {
        if tail == NO_BLOCK { Ok(()) } else { self.pool.retain(tail) }
    }

    /// A fresh block behind `tail`; it takes over the caller's hold on `tail`. None if the pool is
    /// empty.
    pub(super) fn push(&mut self, tail: BlockId) -> Option<BlockId> {
        let block = self.pool.allocate()?;
        self.before[block.index()] = tail;
        Some(block)
    }

    /// Exchanges the caller's hold on a block for one on the block before it. Returns this one and
    /// whether the block is free now.
    pub(super) fn pop(&mut self, tail: BlockId) -> Result<(BlockId, bool)> {
        let before = self.before(tail);
        let is_free = self.pool.release(tail)?; // its hold on `before` is the caller's from here on
        if !is_free {
            self.hold(before)?;
        }
        Ok((before, is_free))
    }

    /// Gives up a hold on the chain that ends here; calls `freed` with each block that is free now,
    /// last first. O(freed blocks).
    pub(super) fn release(&mut self, tail: BlockId, mut freed: impl FnMut(BlockId)) -> Result<()> {
        let mut block = tail;
        while block != NO_BLOCK && self.pool.release(block)? {
            freed(block);
            block = self.before(block);
        }
        Ok(())
    }

    /// Counts the holders that the chains themselves give each block.
    pub(super) fn count_successors(&self, holders: &mut [u32]) -> Result<()> {
        for (b, &before) in self.before.iter().enumerate() {
            let is_resident = self.pool.count(BlockId(b as u32)) > 0;
            if is_resident && before != NO_BLOCK {
                let count = holders.get_mut(before.index()).ok_or_else(|| Error::LawBroken {
                    law: "B2",
                    detail: format!("block {b} follows block {before}"),
                })?;
                *count += 1;
            }
        }
        Ok(())
    }
}
