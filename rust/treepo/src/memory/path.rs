//! What one path holds.

use super::chain::NO_BLOCK;
use crate::ids::{BlockId, PathId, TreeId};

/// What a path is doing, as far as eviction is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Use {
    /// It is in a row of the batch and loses nothing.
    Running,
    /// It waits for a row or for its round.
    Waiting,
    /// A leaf: what blocks it has are residue that a fallback may want.
    Finished,
}

/// A partly filled block that is held until it is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) from: BlockId,
    pub(super) num_slots: u32,
}

/// What one path holds: the end of its chain, and a block that it has not copied yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct PathMemory {
    /// The first block of the chain.
    pub(super) front: BlockId,
    /// The last block of the chain.
    pub(super) tail: BlockId,
    /// Blocks of the chain.
    pub(super) num_blocks: u32,
    /// Tokens from the path's start that are resident.
    pub(super) computed: u32,
    /// The version of prefixes in which the path's first token was computed.
    pub(super) version: u64,
    /// Held in place of the block behind `tail`.
    pub(super) pending: Option<Pending>,
    pub(super) usage: Use,
    /// The entries that the path has in the order of eviction, as bits.
    pub(super) offers: u8,
}

impl PathMemory {
    pub(super) const EMPTY: Self = Self {
        front: NO_BLOCK,
        tail: NO_BLOCK,
        num_blocks: 0,
        computed: 0,
        version: 0,
        pending: None,
        usage: Use::Waiting,
        offers: 0,
    };

    /// The same path without memory.
    pub(super) fn emptied(self) -> Self {
        Self { usage: self.usage, offers: self.offers, ..Self::EMPTY }
    }
}

/// The place of a path in all orders of the scheduler: smaller is more important.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Minus the caller's priority of the tree.
    pub(crate) urgency: i32,
    pub(crate) tree: TreeId,
    pub(crate) path: PathId,
}
