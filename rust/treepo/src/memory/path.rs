//! What one path holds.

use super::Use;
use crate::ids::{BlockId, PathId};

/// The path that owns block `num_blocks - 1` of another path's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) path: PathId,
    pub(super) num_blocks: u32,
}

/// A partly filled block that is held until it is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) from: BlockId,
    pub(super) num_slots: u32,
}

/// What one path holds. Blocks `0..first_block` of its chain belong to ancestors, `blocks` follow.
#[derive(Debug, Clone)]
pub(super) struct PathMemory {
    /// Whether the path holds anything, be it a link alone.
    pub(super) is_attached: bool,
    pub(super) usage: Use,
    /// Who owns the block before the own ones.
    pub(super) link: Option<Link>,
    pub(super) first_block: u32,
    pub(super) blocks: Vec<BlockId>,
    /// Held in place of block `first_block` while `blocks` is empty.
    pub(super) pending: Option<Pending>,
    /// Tokens from the path's start that are resident.
    pub(super) computed: u32,
    /// Paths whose link is this path.
    pub(super) linked: Vec<PathId>,
}

impl Default for PathMemory {
    fn default() -> Self {
        Self {
            is_attached: false,
            usage: Use::Waiting,
            link: None,
            first_block: 0,
            blocks: Vec::new(),
            pending: None,
            computed: 0,
            linked: Vec::new(),
        }
    }
}

impl PathMemory {
    /// Index behind the last own block.
    pub(super) fn end_block(&self) -> u32 {
        self.first_block + self.blocks.len() as u32
    }
}
