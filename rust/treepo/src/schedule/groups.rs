//! Groups of rows that share blocks, for attention kernels that read a shared block once.
//!
//! The block tables of a step's rows form a trie: rows that have a block in common have all blocks
//! before it in common. Sorted by their tables, the rows of every inner node of the trie are
//! neighbours. A group is such a node: rows, and the run of blocks that all of them and no larger
//! group share. Groups nest to any depth; the blocks that a row shares are the groups it is in.

use std::cmp::Ordering;

use super::Scheduler;
use crate::error::{Error, Result};
use crate::ids::{BlockId, PathId, TreeId};

/// Elements that the group arrays need at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupCapacity {
    /// Rows of a step.
    pub num_rows: usize,
    /// Groups of a step.
    pub num_groups: usize,
}

/// The groups of one step, in arrays that the caller allocated.
#[derive(Debug)]
pub struct GroupBuffers<'a> {
    /// `[num_rows]` the plan's rows (their places in `row_ids`) sorted by block table.
    pub row_order: &'a mut [i32],
    /// `[num_groups, 4]` first place in `row_order`, number of rows, first logical block, logical
    /// block behind the last. A group comes behind those within it.
    pub groups: &'a mut [i32],
}

/// A group whose last row is not known yet.
#[derive(Debug, Clone, Copy)]
struct OpenGroup {
    first_row: usize,
    end_block: u32,
}

/// Buffers that are used again in each step.
#[derive(Debug, Clone, Default)]
pub(super) struct GroupScratch {
    rows: Vec<u32>,
    open: Vec<OpenGroup>,
}

/// The end of a row's chain.
#[derive(Debug, Clone, Copy)]
struct ChainEnd {
    block: BlockId,
    num_blocks: u32,
    front: BlockId,
}

impl Scheduler {
    /// Elements that [`Scheduler::group_rows`] needs at most.
    pub fn group_capacity(&self) -> GroupCapacity {
        let rows = self.config.max_num_seqs as usize;
        GroupCapacity { num_rows: rows, num_groups: rows }
    }

    /// Writes the groups of the open plan's rows; returns their number. O(n log n) comparisons of
    /// rows, each O(blocks behind their common front); no step pays for it that does not ask.
    ///
    /// # Errors
    /// `InvalidInput` without an open plan, `BufferTooSmall`.
    pub fn group_rows(&mut self, out: &mut GroupBuffers<'_>) -> Result<usize> {
        if !self.plan.is_open {
            return Err(Error::InvalidInput("there is no plan whose rows form groups".into()));
        }
        let num_rows = self.plan.fed.len();
        for (array, given, needed) in [
            ("row_order", out.row_order.len(), num_rows),
            ("groups", out.groups.len(), 4 * num_rows),
        ] {
            if given < needed {
                return Err(Error::BufferTooSmall { array, needed, given });
            }
        }
        let mut scratch = std::mem::take(&mut self.group_scratch);
        scratch.rows.clear();
        scratch.rows.extend(0..num_rows as u32);
        scratch.rows.sort_unstable_by(|&a, &b| self.compare_rows(a, b).then(a.cmp(&b)));
        for (place, &row) in out.row_order.iter_mut().zip(&scratch.rows) {
            *place = row as i32;
        }
        let num_groups = self.write_groups(&mut scratch, out.groups);
        self.group_scratch = scratch;
        Ok(num_groups)
    }

    /// Enumerates the inner nodes of the trie from the common fronts of neighbours.
    fn write_groups(&self, scratch: &mut GroupScratch, groups: &mut [i32]) -> usize {
        let GroupScratch { rows, open } = scratch;
        let mut num_groups = 0;
        open.clear();
        for place in 0..rows.len() {
            let next = match rows.get(place + 1) {
                Some(&row) => self.common_front(rows[place], row).0,
                None => 0,
            };
            let mut first_row = place;
            while let Some(group) = open.pop_if(|group| group.end_block > next) {
                let outer = open.last().map_or(0, |group| group.end_block).max(next);
                let num_rows = place + 1 - group.first_row;
                let values =
                    [group.first_row as i32, num_rows as i32, outer as i32, group.end_block as i32];
                groups[4 * num_groups..][..4].copy_from_slice(&values);
                num_groups += 1;
                first_row = group.first_row;
            }
            if next > open.last().map_or(0, |group| group.end_block) {
                open.push(OpenGroup { first_row, end_block: next });
            }
        }
        num_groups
    }

    fn chain_end(&self, row: u32) -> ChainEnd {
        let fed = self.plan.fed[row as usize];
        let (tree, path): (TreeId, PathId) = (fed.tree, fed.path);
        ChainEnd {
            block: self.memory.tail(tree, path),
            num_blocks: self.memory.num_blocks(tree, path),
            front: self.memory.front(tree, path),
        }
    }

    fn compare_rows(&self, a: u32, b: u32) -> Ordering {
        let (front_a, front_b) = (self.chain_end(a).front, self.chain_end(b).front);
        if front_a != front_b {
            return front_a.cmp(&front_b);
        }
        let (_, next_a, next_b) = self.common_front(a, b);
        next_a.cmp(&next_b)
    }

    /// How many blocks two rows have in common, and the first block behind these of each; block 0
    /// where there is none.
    fn common_front(&self, a: u32, b: u32) -> (u32, BlockId, BlockId) {
        let (a, b) = (self.chain_end(a), self.chain_end(b));
        if a.front != b.front {
            return (0, a.front, b.front);
        }
        let (mut x, mut y) = (a.block, b.block);
        let (mut len_x, mut len_y) = (a.num_blocks, b.num_blocks);
        let (mut next_x, mut next_y) = (BlockId(0), BlockId(0));
        while x != y {
            if len_x >= len_y {
                (next_x, x, len_x) = (x, self.memory.before(x), len_x - 1);
            }
            if len_y > len_x {
                (next_y, y, len_y) = (y, self.memory.before(y), len_y - 1);
            }
        }
        (len_x, next_x, next_y)
    }
}
