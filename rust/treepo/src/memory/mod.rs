//! Where keys and values live: blocks of the pool, owned along paths.
//!
//! A path owns the blocks from its fork point on and links to the path that owns the block before
//! them, so a fork is O(1) at any length. The partly filled block at a fork point is held by one
//! count and copied when the new path first runs; if nobody else holds it by then it is adopted
//! without a copy.
//!
//! Who may be evicted: a path that is idle (not in a row of the batch) loses blocks one by one from
//! its end, down to what its links need; leaves go first, since a link protects its target. What
//! has been evicted is computed again from the nearest resident ancestor.
//!
//! Laws: B2 a block's count equals its holders (one owning path, pending copies, copies under
//! way); B3 slots below a holder's length never change: only the owner writes, behind the length
//! of every other holder; B4 a freed tree leaves nothing behind.

mod path;
mod pool;

use std::cmp::Reverse;
use std::collections::BTreeSet;

pub use pool::BlockPool;

use crate::error::{Result, law};
use crate::forest::Tree;
use crate::ids::{BlockId, PathId, TreeId};
use path::{Link, PathMemory, Pending};

/// What a path is doing, as far as eviction is concerned. Lower goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A leaf: its blocks are residue that a fallback may want.
    Finished,
    /// It waits for a row or for its round.
    Waiting,
    /// It is in a row of the batch and loses nothing.
    Running,
}

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

/// Order of eviction: finished before waiting, younger trees and paths first.
type IdleKey = (Use, Reverse<TreeId>, Reverse<PathId>);

/// Memory of all trees.
#[derive(Debug, Clone)]
pub struct Memory {
    block_size: u32,
    pool: BlockPool,
    trees: Vec<Vec<PathMemory>>,
    /// Idle paths that may have something to give.
    idle: BTreeSet<IdleKey>,
    /// Copies that the open plan has ordered; each holds its source.
    copying: Vec<BlockCopy>,
    num_evicted: u64,
}

impl Memory {
    /// Memory without trees.
    ///
    /// # Errors
    /// `InvalidConfig` if the pool has no block to give.
    pub fn new(num_blocks: u32, block_size: u32) -> Result<Self> {
        Ok(Self {
            block_size,
            pool: BlockPool::new(num_blocks)?,
            trees: Vec::new(),
            idle: BTreeSet::new(),
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
        &self.pool
    }

    /// Blocks evicted so far.
    pub fn num_evicted(&self) -> u64 {
        self.num_evicted
    }

    /// Blocks for `len` tokens.
    pub fn blocks_for(&self, len: u32) -> u32 {
        len.div_ceil(self.block_size)
    }

    /// Makes room for the state of a path.
    pub fn add_path(&mut self, tree: TreeId, path: PathId) {
        if tree.index() == self.trees.len() {
            self.trees.push(Vec::new());
        }
        debug_assert_eq!(path.index(), self.trees[tree.index()].len());
        self.trees[tree.index()].push(PathMemory::default());
    }

    fn at(&self, tree: TreeId, path: PathId) -> &PathMemory {
        &self.trees[tree.index()][path.index()]
    }

    fn at_mut(&mut self, tree: TreeId, path: PathId) -> &mut PathMemory {
        &mut self.trees[tree.index()][path.index()]
    }

    /// Tokens from the path's start whose keys and values are resident.
    pub fn num_computed(&self, tree: TreeId, path: PathId) -> u32 {
        self.at(tree, path).computed
    }

    /// Whether the path holds memory of its own or of an ancestor.
    pub fn is_attached(&self, tree: TreeId, path: PathId) -> bool {
        self.at(tree, path).is_attached
    }

    /// Records that tokens up to `computed` are resident.
    pub fn set_computed(&mut self, tree: TreeId, path: PathId, computed: u32) {
        self.at_mut(tree, path).computed = computed;
    }

    /// Changes what the path is doing.
    pub fn set_use(&mut self, tree: TreeId, path: PathId, to: Use) {
        let own = self.at_mut(tree, path);
        let from = std::mem::replace(&mut own.usage, to);
        self.idle.remove(&(from, Reverse(tree), Reverse(path)));
        self.offer(tree, path);
    }

    /// Puts an idle path up for eviction.
    fn offer(&mut self, tree: TreeId, path: PathId) {
        let own = self.at(tree, path);
        if own.usage != Use::Running && own.is_attached {
            self.idle.insert((own.usage, Reverse(tree), Reverse(path)));
        }
    }

    /// Attaches a path to what is resident of its prefix: its first `at` tokens are those of its
    /// parents in the forest. O(ancestors).
    pub fn attach(&mut self, tree: &Tree, id: TreeId, path: PathId) -> Result<()> {
        let mut prefix = tree.own(path).at;
        let mut donor = tree.own(path).parent();
        while let Some(candidate) = donor {
            if self.at(id, candidate).is_attached {
                return self.attach_to(id, path, candidate, prefix);
            }
            prefix = prefix.min(tree.own(candidate).at);
            donor = tree.own(candidate).parent();
        }
        let own = self.at_mut(id, path);
        own.is_attached = true;
        Ok(())
    }

    /// Attaches a path to `donor`, with which it shares the first `prefix` tokens. O(ancestors).
    pub fn attach_to(
        &mut self,
        tree: TreeId,
        path: PathId,
        donor: PathId,
        prefix: u32,
    ) -> Result<()> {
        let shared = prefix.min(self.at(tree, donor).computed);
        let (full_blocks, partial) = (shared / self.block_size, shared % self.block_size);
        let mut pending = None;
        if partial > 0 {
            let from = self.filled(self.block_at(tree, donor, full_blocks));
            self.pool.retain(from)?;
            pending = Some(Pending { from, num_slots: partial });
        }
        let link = self.owner_before(tree, donor, full_blocks);
        if let Some(Link { path: owner, .. }) = link {
            self.at_mut(tree, owner).linked.push(path);
        }
        *self.at_mut(tree, path) = PathMemory {
            is_attached: true,
            link,
            first_block: full_blocks,
            pending,
            computed: shared,
            ..PathMemory::default()
        };
        self.offer(tree, path);
        Ok(())
    }

    /// The path along the donor's chain that owns block `num_blocks - 1`.
    fn owner_before(&self, tree: TreeId, donor: PathId, num_blocks: u32) -> Option<Link> {
        let mut path = donor;
        if num_blocks == 0 {
            return None;
        }
        while let Some(link) =
            self.at(tree, path).link.filter(|_| num_blocks <= self.at(tree, path).first_block)
        {
            path = link.path;
        }
        Some(Link { path, num_blocks })
    }

    /// The block with this logical index on the path's chain; the source of a pending copy stands
    /// for the block that will be copied.
    fn block_at(&self, tree: TreeId, path: PathId, index: u32) -> BlockId {
        let mut own = self.at(tree, path);
        while let Some(link) = own.link.filter(|_| index < own.first_block) {
            own = self.at(tree, link.path);
        }
        match own.pending {
            Some(pending) if index == own.first_block => pending.from,
            _ => own.blocks[(index - own.first_block) as usize],
        }
    }

    /// The block to read in place of one that the open plan only copies to: all sources are read
    /// before any destination is written.
    fn filled(&self, block: BlockId) -> BlockId {
        self.copying.iter().find(|copy| copy.to == block).map_or(block, |copy| copy.from)
    }

    /// Number of blocks on the path's chain, a pending copy not counted.
    pub fn num_blocks(&self, tree: TreeId, path: PathId) -> u32 {
        self.at(tree, path).end_block()
    }

    /// Calls `visit` with logical index and block from `first` on, highest index first.
    pub fn for_each_block(
        &self,
        tree: TreeId,
        path: PathId,
        first: u32,
        mut visit: impl FnMut(u32, BlockId),
    ) {
        let mut own = self.at(tree, path);
        let mut end = own.end_block();
        loop {
            let start = own.first_block.max(first);
            for index in (start..end).rev() {
                visit(index, own.blocks[(index - own.first_block) as usize]);
            }
            end = end.min(own.first_block);
            match own.link {
                Some(link) if end > first => own = self.at(tree, link.path),
                _ => return,
            }
        }
    }

    /// The slot of a position on one of the path's own blocks.
    pub fn slot(&self, tree: TreeId, path: PathId, position: u32) -> i64 {
        let own = self.at(tree, path);
        let block = own.blocks[(position / self.block_size - own.first_block) as usize];
        i64::from(block.0) * i64::from(self.block_size) + i64::from(position % self.block_size)
    }

    /// Gives the path its next block: a copy of its pending one, or a fresh one. Returns the copy
    /// to do, or `None` inside if there is none; `Ok(None)` means that the pool is empty.
    pub fn grow(&mut self, tree: TreeId, path: PathId) -> Result<Option<Option<BlockCopy>>> {
        let Some(Pending { from, num_slots }) = self.at(tree, path).pending else {
            let Some(block) = self.pool.allocate() else { return Ok(None) };
            self.at_mut(tree, path).blocks.push(block);
            return Ok(Some(None));
        };
        let adopts = self.pool.count(from) == 1;
        let to = if adopts { Some(from) } else { self.pool.allocate() };
        let Some(to) = to else { return Ok(None) };
        let own = self.at_mut(tree, path);
        own.pending = None;
        own.blocks.push(to);
        if adopts {
            return Ok(Some(None));
        }
        let copy = BlockCopy { from, to, num_slots };
        self.copying.push(copy); // B2: the hold of the pending copy lasts until the copy is done
        Ok(Some(Some(copy)))
    }

    /// Whether the path has a block that is not its own yet.
    pub fn has_pending_copy(&self, tree: TreeId, path: PathId) -> bool {
        self.at(tree, path).pending.is_some()
    }

    /// Whether the path can take over the block of its pending copy, as nobody else holds it.
    pub fn can_adopt(&self, tree: TreeId, path: PathId) -> bool {
        self.at(tree, path).pending.is_some_and(|copy| self.pool.count(copy.from) == 1)
    }

    /// Ends the copies of the last plan.
    pub fn finish_copies(&mut self) -> Result<()> {
        while let Some(copy) = self.copying.pop() {
            self.pool.release(copy.from)?;
        }
        Ok(())
    }

    /// Takes memory from the idle path that comes first in the order of eviction, at most one
    /// block. Returns whether anything was taken; the pool may still be empty then, as the block
    /// may have another holder.
    pub fn evict_one(&mut self) -> Result<bool> {
        while let Some((usage, Reverse(tree), Reverse(path))) = self.idle.pop_first() {
            if self.shrink(tree, path)? {
                self.idle.insert((usage, Reverse(tree), Reverse(path)));
                return Ok(true);
            }
            if self.detach_if_empty(tree, path) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the path's last block or its pending copy; false if its links need all it has.
    fn shrink(&mut self, tree: TreeId, path: PathId) -> Result<bool> {
        let block_size = self.block_size;
        let needed = self.needed_blocks(tree, path);
        let own = self.at_mut(tree, path);
        if let Some(pending) = own.pending.take() {
            own.computed = own.first_block * block_size;
            self.pool.release(pending.from)?;
            self.num_evicted += 1;
            return Ok(true);
        }
        if own.end_block() <= needed.max(own.first_block) {
            return Ok(false);
        }
        let Some(block) = own.blocks.pop() else { return Ok(false) };
        own.computed = own.computed.min(own.end_block() * block_size);
        self.pool.release(block)?;
        self.num_evicted += 1;
        Ok(true)
    }

    /// Blocks of the chain up to this path that links to it need.
    fn needed_blocks(&self, tree: TreeId, path: PathId) -> u32 {
        let linked = self.at(tree, path).linked.iter();
        linked
            .filter_map(|&child| self.at(tree, child).link)
            .map(|l| l.num_blocks)
            .max()
            .unwrap_or(0)
    }

    /// Gives up the link of a path that owns nothing and that nobody links to.
    fn detach_if_empty(&mut self, tree: TreeId, path: PathId) -> bool {
        let own = self.at_mut(tree, path);
        if !own.blocks.is_empty() || !own.linked.is_empty() {
            return false;
        }
        let link = own.link;
        *own = PathMemory { usage: own.usage, ..PathMemory::default() };
        if let Some(Link { path: owner, .. }) = link {
            self.at_mut(tree, owner).linked.retain(|&child| child != path);
            self.offer(tree, owner);
        }
        true
    }

    /// Frees everything that a tree holds. O(its blocks).
    pub fn free_tree(&mut self, tree: TreeId) -> Result<()> {
        let paths = std::mem::take(&mut self.trees[tree.index()]);
        for (p, own) in paths.into_iter().enumerate() {
            self.idle.remove(&(own.usage, Reverse(tree), Reverse(PathId(p as u32))));
            let held = own.pending.map(|pending| pending.from);
            for block in own.blocks.into_iter().chain(held) {
                self.pool.release(block)?;
            }
        }
        Ok(())
    }

    /// Checks the laws of memory in O(blocks).
    ///
    /// # Errors
    /// `LawBroken` with the first law that does not hold.
    pub fn check(&self) -> Result<()> {
        self.pool.check()?;
        let mut holders = vec![0u32; self.pool.num_blocks() as usize];
        for copy in &self.copying {
            holders[copy.from.index()] += 1;
        }
        let mut num_owners = vec![0u32; holders.len()];
        for (t, paths) in self.trees.iter().enumerate() {
            for (p, own) in paths.iter().enumerate() {
                let held = own.blocks.iter().copied().chain(own.pending.map(|copy| copy.from));
                for block in &own.blocks {
                    num_owners[block.index()] += 1;
                }
                for block in held {
                    holders[block.index()] += 1;
                }
                self.check_path(TreeId(t as u32), PathId(p as u32), own)?;
            }
        }
        let shared = num_owners.iter().position(|&owners| owners > 1);
        law(shared.is_none(), "B3", || format!("block {shared:?} has two appenders"))?;
        for (b, &expected) in holders.iter().enumerate() {
            let count = self.pool.count(BlockId(b as u32));
            law(count == expected, "B2", || format!("block {b}: {count} for {expected} holders"))?;
        }
        Ok(())
    }

    fn check_path(&self, tree: TreeId, path: PathId, own: &PathMemory) -> Result<()> {
        let place = || format!("tree {tree}, path {path}");
        let pending = own.pending.map_or(0, |copy| copy.num_slots);
        let resident = own.end_block() * self.block_size + pending;
        law(own.computed <= resident, "B3", || {
            format!("{}: {} tokens on {resident} slots", place(), own.computed)
        })?;
        law(own.pending.is_none() || own.blocks.is_empty(), "B3", || format!("{}: copy", place()))?;
        if let Some(link) = own.link {
            let owner = self.at(tree, link.path);
            let inside = owner.first_block < link.num_blocks
                && link.num_blocks <= owner.end_block()
                && link.num_blocks == own.first_block
                && owner.linked.contains(&path);
            law(inside, "B3", || format!("{}: link {link:?}", place()))?;
        }
        Ok(())
    }
}
