//! The block pool: reference counts and a stack of free blocks.

use crate::error::{Error, Result, law};
use crate::ids::BlockId;

/// Blocks of a pool at most; with 16 tokens a block these are a billion tokens.
const MAX_BLOCKS: u32 = 1 << 26;

/// Owner of all blocks. Every operation is O(1). Block 0 is reserved: it is never handed out and
/// serves as the place where padding and repeated queries write.
///
/// Laws: B1 free + resident = all blocks; B2 a count equals the number of holders.
#[derive(Debug, Clone)]
pub struct BlockPool {
    counts: Vec<u32>,
    free: Vec<BlockId>,
}

impl BlockPool {
    /// A pool of `num_blocks` blocks, of which block 0 is reserved.
    ///
    /// # Errors
    /// `InvalidConfig` for fewer than two blocks.
    pub fn new(num_blocks: u32) -> Result<Self> {
        if !(2..=MAX_BLOCKS).contains(&num_blocks) {
            let message =
                format!("must be 2 (block 0 is reserved) to {MAX_BLOCKS}, got {num_blocks}");
            return Err(Error::InvalidConfig { field: "num_blocks", message });
        }
        let free = (1..num_blocks).rev().map(BlockId).collect();
        Ok(Self { counts: vec![0; num_blocks as usize], free })
    }

    /// All blocks, the reserved one included.
    pub fn num_blocks(&self) -> u32 {
        self.counts.len() as u32
    }

    /// Blocks that nobody holds.
    pub fn num_free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Blocks that can be handed out at all.
    pub fn capacity(&self) -> u32 {
        self.num_blocks() - 1
    }

    /// Holders of a block; 0 for a free block and for the reserved one.
    pub fn count(&self, block: BlockId) -> u32 {
        self.counts.get(block.index()).copied().unwrap_or(0)
    }

    /// Takes a free block with one holder, the most recently freed first.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.counts[block.index()] = 1;
        Some(block)
    }

    /// Adds a holder.
    ///
    /// # Errors
    /// `InvalidInput` for a block that nobody holds.
    pub fn retain(&mut self, block: BlockId) -> Result<()> {
        self.held(block)?;
        self.counts[block.index()] += 1;
        Ok(())
    }

    /// Takes a holder away; returns whether the block is free now.
    ///
    /// # Errors
    /// `InvalidInput` for a block that nobody holds.
    pub fn release(&mut self, block: BlockId) -> Result<bool> {
        self.held(block)?;
        let count = &mut self.counts[block.index()];
        *count -= 1;
        let is_free = *count == 0;
        if is_free {
            self.free.push(block);
        }
        Ok(is_free)
    }

    fn held(&self, block: BlockId) -> Result<()> {
        if self.count(block) > 0 {
            return Ok(());
        }
        Err(Error::InvalidInput(format!("block {block} of {} has no holder", self.num_blocks())))
    }

    /// Checks law B1 in O(blocks).
    ///
    /// # Errors
    /// `LawBroken`.
    pub fn check(&self) -> Result<()> {
        let mut is_free = vec![false; self.counts.len()];
        for &block in &self.free {
            let twice = std::mem::replace(&mut is_free[block.index()], true);
            law(!twice && self.count(block) == 0, "B1", || format!("free block {block}"))?;
        }
        let resident = self.counts.iter().filter(|&&count| count > 0).count();
        law(resident + self.free.len() == self.capacity() as usize, "B1", || {
            format!("{resident} resident + {} free blocks of {}", self.free.len(), self.capacity())
        })?;
        law(self.counts[0] == 0 && !is_free[0], "B1", || "block 0 is in use".into())
    }
}
