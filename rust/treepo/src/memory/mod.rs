//! Where keys and values live: chains of blocks, shared by every path that begins with them.
//!
//! A path holds the last block of its chain, each block holds the one before it. So a fork is one
//! count at any length, a path's blocks go when its hold goes, and an inner block cannot go before
//! what follows it. The partly filled block at a fork point is held by one count of its own and
//! copied when the new path first runs; if nobody else holds it by then it is adopted without a
//! copy.
//!
//! Idle paths (not in a row of the batch) lose memory to others: leaves first, then waiting paths,
//! the least important first, block by block from the end of their chains. What is missing is
//! computed again from the nearest resident relative, or from another tree's equal prompt.
//!
//! Laws: B2 a block's count equals its holders (paths, the blocks behind it, pending copies, copies
//! under way); B3 slots below a holder's length never change: one path at most writes to a block,
//! behind the length of every other holder; B4 a freed tree leaves nothing behind.

mod chain;
mod check;
mod evict;
mod idle;
mod path;
mod pool;
mod prefix;
mod share;

pub use pool::BlockPool;

use crate::error::{Error, Result};
use crate::ids::{BlockId, PathId, TreeId};
use chain::{Chains, NO_BLOCK};
pub(crate) use evict::Claim;
use idle::IdleHeaps;
use path::{PathMemory, Pending};
pub(crate) use path::{Rank, Use};
use prefix::{PrefixTable, Published};

/// Slots of a block at most. With it and [`MAX_LEN`] no product of lengths leaves 32 bits.
const MAX_BLOCK_SIZE: u32 = 1 << 20;
/// Tokens of a path at most.
const MAX_LEN: u32 = i32::MAX as u32;

/// A copy that has to be done before the step writes: `num_slots` slots from the front of `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Source block.
    pub from: BlockId,
    /// Destination block.
    pub to: BlockId,
    /// Slots to copy, counted from the front of the block.
    pub num_slots: u32,
}

/// How a path came to its next block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Growth {
    /// A fresh block.
    Fresh,
    /// The block of its pending copy, which nobody else held.
    Adopted,
    /// A fresh block that has to be filled first.
    Copied(BlockCopy),
}

/// Memory of one tree.
#[derive(Debug, Clone, Default)]
struct TreeMemory {
    urgency: i32,
    /// Counts the changes of urgency: entries of an earlier one say nothing.
    epoch: u32,
    paths: Vec<PathMemory>,
    published: Published,
}

/// The key-value memory of all trees, as block tables over one pool.
///
/// It stands alone: an engine that schedules by itself can use it for its block tables
/// ([`Memory::add_path`], [`Memory::extend`], [`Memory::fork`], [`Memory::free_path`]).
#[derive(Debug, Clone)]
pub struct Memory {
    block_size: u32,
    chains: Chains,
    trees: Vec<TreeMemory>,
    idle: IdleHeaps,
    prefixes: PrefixTable,
    /// Counts the flushes of the table: what was computed before one is not shared after it.
    prefix_version: u64,
    /// Hashes of the blocks that are being published.
    hashes: Vec<u64>,
    /// Copies that the open plan has ordered; each holds its source.
    copying: Vec<BlockCopy>,
    num_evicted: u64,
}

impl Memory {
    /// Memory without trees.
    ///
    /// # Errors
    /// `InvalidConfig` if the pool has no block to give, or for blocks without slots.
    pub fn new(num_blocks: u32, block_size: u32) -> Result<Self> {
        if !(1..=MAX_BLOCK_SIZE).contains(&block_size) {
            let message = format!("must be 1 to {MAX_BLOCK_SIZE}, got {block_size}");
            return Err(Error::InvalidConfig { field: "block_size", message });
        }
        Ok(Self {
            block_size,
            chains: Chains::new(num_blocks)?,
            trees: Vec::new(),
            idle: IdleHeaps::default(),
            prefixes: PrefixTable::new(num_blocks),
            prefix_version: 0,
            hashes: Vec::new(),
            copying: Vec::new(),
            num_evicted: 0,
        })
    }

    /// Slots of a block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The pool.
    pub fn pool(&self) -> &BlockPool {
        &self.chains.pool
    }

    /// Blocks, and holds on shared ones, that were taken from paths so far.
    pub fn num_evicted(&self) -> u64 {
        self.num_evicted
    }

    pub(crate) fn set_num_evicted(&mut self, num_evicted: u64) {
        self.num_evicted = num_evicted;
    }

    /// Blocks for `len` tokens.
    pub fn blocks_for(&self, len: u32) -> u32 {
        len.div_ceil(self.block_size)
    }

    /// Makes room for the state of a path. Trees and paths come in order.
    ///
    /// # Errors
    /// `InvalidInput` for a path or tree that is not the next one.
    pub fn add_path(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        if tree.index() == self.trees.len() && path.0 == 0 {
            self.trees.push(TreeMemory::default());
        }
        let num_trees = self.trees.len();
        let paths = self.trees.get_mut(tree.index()).map(|tree| &mut tree.paths);
        match paths {
            Some(paths) if paths.len() == path.index() => {
                paths.push(PathMemory::EMPTY);
                Ok(())
            }
            _ => Err(Error::InvalidInput(format!(
                "path {path} of tree {tree} is not the next one of {num_trees} trees"
            ))),
        }
    }

    /// Makes room for the states of `num_paths` paths of a tree, so that adding them allocates
    /// nothing.
    pub(crate) fn reserve_paths(&mut self, tree: TreeId, num_paths: usize) {
        self.trees[tree.index()].paths.reserve(num_paths);
    }

    fn at(&self, tree: TreeId, path: PathId) -> &PathMemory {
        &self.trees[tree.index()].paths[path.index()]
    }

    fn at_mut(&mut self, tree: TreeId, path: PathId) -> &mut PathMemory {
        &mut self.trees[tree.index()].paths[path.index()]
    }

    fn checked(&self, tree: TreeId, path: PathId) -> Result<&PathMemory> {
        let paths = self.trees.get(tree.index()).map(|tree| &tree.paths);
        paths.and_then(|paths| paths.get(path.index())).ok_or_else(|| {
            Error::InvalidInput(format!("path {path} of tree {tree} has no memory state"))
        })
    }

    /// Tokens from the path's start whose keys and values are resident.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown path.
    pub fn num_computed(&self, tree: TreeId, path: PathId) -> Result<u32> {
        self.checked(tree, path).map(|own| own.computed)
    }

    /// The path's block table, first block first. O(blocks).
    ///
    /// # Errors
    /// `InvalidInput` for an unknown path.
    pub fn block_table(&self, tree: TreeId, path: PathId) -> Result<Vec<BlockId>> {
        self.checked(tree, path)?;
        let mut table = Vec::new();
        self.for_each_block(tree, path, 0, |_, block| table.push(block));
        table.reverse();
        Ok(table)
    }

    /// Grows the path's chain to hold `len` tokens and counts them as computed. For engines that
    /// schedule by themselves. Returns the copy to do before anything is written, if there is one.
    ///
    /// # Errors
    /// `PoolTooSmall` if the pool has not got the blocks; nothing has changed then.
    pub fn extend(&mut self, tree: TreeId, path: PathId, len: u32) -> Result<Option<BlockCopy>> {
        self.checked(tree, path)?;
        if len > MAX_LEN {
            return Err(Error::InvalidInput(format!("a path of {len} tokens, at most {MAX_LEN}")));
        }
        let needed = self.blocks_for(len);
        if self.missing_blocks(tree, path, needed) > self.pool().num_free() {
            let available = self.pool().num_free() + self.num_blocks(tree, path);
            return Err(Error::PoolTooSmall { needed, available });
        }
        let mut copy = None;
        while self.num_blocks(tree, path) < needed {
            if let Some(Growth::Copied(ordered)) = self.grow(tree, path)? {
                copy = Some(ordered);
            }
        }
        let own = self.at_mut(tree, path);
        own.computed = own.computed.max(len);
        self.finish_copies()?;
        Ok(copy)
    }

    pub(crate) fn computed(&self, tree: TreeId, path: PathId) -> u32 {
        self.at(tree, path).computed
    }

    /// Records that tokens up to `computed` are resident.
    pub(crate) fn set_computed(&mut self, tree: TreeId, path: PathId, computed: u32) {
        self.at_mut(tree, path).computed = computed;
    }

    /// Number of blocks on the path's chain, a pending copy not counted.
    pub(crate) fn num_blocks(&self, tree: TreeId, path: PathId) -> u32 {
        self.at(tree, path).num_blocks
    }

    /// The last block of the path's chain.
    pub(crate) fn tail(&self, tree: TreeId, path: PathId) -> BlockId {
        self.at(tree, path).tail
    }

    /// The first block of the path's chain.
    pub(crate) fn front(&self, tree: TreeId, path: PathId) -> BlockId {
        self.at(tree, path).front
    }

    /// The block before this one on every chain that it is part of.
    pub(crate) fn before(&self, block: BlockId) -> BlockId {
        self.chains.before(block)
    }

    /// Calls `visit` with logical index and block from `first` on, highest index first.
    pub(crate) fn for_each_block(
        &self,
        tree: TreeId,
        path: PathId,
        first: u32,
        mut visit: impl FnMut(u32, BlockId),
    ) {
        let own = self.at(tree, path);
        let mut block = own.tail;
        for index in (first..own.num_blocks).rev() {
            visit(index, block);
            block = self.chains.before(block);
        }
    }

    /// Writes the slots of positions `start..start + out.len()`, which lie on the path's chain.
    pub(crate) fn write_slots(&self, tree: TreeId, path: PathId, start: u32, out: &mut [i64]) {
        let size = self.block_size;
        if let [slot] = out {
            let own = self.at(tree, path);
            if start / size + 1 == own.num_blocks {
                *slot = i64::from(own.tail.0) * i64::from(size) + i64::from(start % size);
                return;
            }
        }
        let end = start + out.len() as u32;
        self.for_each_block(tree, path, start / size, |index, block| {
            let from = start.max(index * size);
            let to = end.min((index + 1) * size);
            let first = i64::from(block.0) * i64::from(size) + i64::from(from - index * size);
            if from < to {
                let places = &mut out[(from - start) as usize..(to - start) as usize];
                places.iter_mut().zip(first..).for_each(|(place, slot)| *place = slot);
            }
        });
    }

    /// Gives the path its next block; none if the pool is empty.
    pub(crate) fn grow(&mut self, tree: TreeId, path: PathId) -> Result<Option<Growth>> {
        let own = *self.at(tree, path);
        let Some(Pending { from, num_slots }) = own.pending else {
            let Some(block) = self.chains.push(own.tail) else { return Ok(None) };
            self.append(tree, path, block);
            return Ok(Some(Growth::Fresh));
        };
        if self.pool().count(from) == 1 {
            // the path's hold on its tail is one too many: the adopted block has one
            self.chains.release(own.tail, |_| {})?;
            self.append(tree, path, from);
            return Ok(Some(Growth::Adopted));
        }
        let Some(to) = self.chains.push(own.tail) else { return Ok(None) };
        self.append(tree, path, to);
        let copy = BlockCopy { from, to, num_slots };
        self.copying.push(copy); // B2: the hold of the pending copy lasts until the copy is done
        Ok(Some(Growth::Copied(copy)))
    }

    fn append(&mut self, tree: TreeId, path: PathId, block: BlockId) {
        let own = self.at_mut(tree, path);
        own.pending = None;
        own.tail = block;
        own.num_blocks += 1;
        if own.num_blocks == 1 {
            own.front = block;
        }
    }

    /// Whether the path can take over the block of its pending copy, as nobody else holds it.
    fn can_adopt(&self, tree: TreeId, path: PathId) -> bool {
        self.at(tree, path).pending.is_some_and(|copy| self.pool().count(copy.from) == 1)
    }

    /// Blocks to take from the pool until the path's chain has `end_block`.
    pub(crate) fn missing_blocks(&self, tree: TreeId, path: PathId, end_block: u32) -> u32 {
        let missing = end_block - self.num_blocks(tree, path).min(end_block);
        missing - u32::from(missing > 0 && self.can_adopt(tree, path))
    }

    /// Ends the copies of the last plan.
    pub(crate) fn finish_copies(&mut self) -> Result<()> {
        while let Some(copy) = self.copying.pop() {
            self.release(copy.from)?;
        }
        Ok(())
    }

    /// Gives up a hold on a chain; blocks that are free now are known as prefixes no more.
    fn release(&mut self, tail: BlockId) -> Result<()> {
        let prefixes = &mut self.prefixes;
        self.chains.release(tail, |block| prefixes.remove(block))
    }

    /// Frees what only this path holds. O(freed blocks).
    ///
    /// # Errors
    /// `InvalidInput` for an unknown path.
    pub fn free_path(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        let own = *self.checked(tree, path)?;
        *self.at_mut(tree, path) = own.emptied();
        if let Some(pending) = own.pending {
            self.release(pending.from)?;
        }
        self.release(own.tail)
    }

    /// Frees everything that a tree holds; its paths have no memory state any more. O(paths +
    /// freed blocks).
    ///
    /// # Errors
    /// `InvalidInput` for an unknown tree.
    pub fn free_tree(&mut self, tree: TreeId) -> Result<()> {
        let num_trees = self.trees.len();
        let unknown = || Error::InvalidInput(format!("tree {tree} of {num_trees} trees"));
        let num_paths = self.trees.get(tree.index()).ok_or_else(unknown)?.paths.len();
        for p in 0..num_paths {
            self.free_path(tree, PathId(p as u32))?;
        }
        self.trees[tree.index()].paths = Vec::new();
        self.forget_idle(num_paths);
        Ok(())
    }
}
