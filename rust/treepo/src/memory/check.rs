//! The laws of memory.

use super::{Memory, NO_BLOCK, PathMemory};
use crate::error::{Result, law};
use crate::ids::BlockId;

impl Memory {
    /// Checks the laws of memory in O(paths + blocks).
    ///
    /// # Errors
    /// `LawBroken` with the first law that does not hold.
    pub fn check(&self) -> Result<()> {
        self.pool().check()?;
        let num_blocks = self.pool().num_blocks() as usize;
        let (mut holders, mut writers) = (vec![0u32; num_blocks], vec![0u32; num_blocks]);
        self.chains.count_successors(&mut holders)?;
        for copy in &self.copying {
            holders[copy.from.index()] += 1;
        }
        for (t, tree) in self.trees.iter().enumerate() {
            for (p, own) in tree.paths.iter().enumerate() {
                self.check_path(own, &|| format!("tree {t}, path {p}"))?;
                holders[own.tail.index()] += u32::from(own.tail != NO_BLOCK);
                if let Some(pending) = own.pending {
                    holders[pending.from.index()] += 1;
                }
                let is_partial = own.computed < own.num_blocks * self.block_size;
                writers[own.tail.index()] += u32::from(is_partial);
            }
        }
        let shared = writers.iter().position(|&writers| writers > 1);
        law(shared.is_none(), "B3", || format!("block {shared:?} has two writers"))?;
        for (b, &expected) in holders.iter().enumerate() {
            let count = self.pool().count(BlockId(b as u32));
            law(count == expected, "B2", || format!("block {b}: {count} for {expected} holders"))?;
        }
        Ok(())
    }

    fn check_path(&self, own: &PathMemory, place: &dyn Fn() -> String) -> Result<()> {
        let pending = own.pending.map_or(0, |copy| copy.num_slots);
        let resident = own.num_blocks * self.block_size + pending;
        law(own.computed <= resident, "B3", || {
            format!("{}: {} tokens on {resident} slots", place(), own.computed)
        })?;
        let (mut block, mut num_blocks) = (own.tail, 0);
        while block != NO_BLOCK && num_blocks <= own.num_blocks {
            (block, num_blocks) = (self.chains.before(block), num_blocks + 1);
        }
        law(num_blocks == own.num_blocks, "B3", || {
            format!("{}: {num_blocks} blocks on a chain of {}", place(), own.num_blocks)
        })?;
        let follows = own.pending.is_none_or(|copy| self.chains.before(copy.from) == own.tail);
        law(follows, "B3", || format!("{}: the pending copy follows another block", place()))
    }
}
