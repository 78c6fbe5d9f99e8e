//! Prompt prefixes that trees share: full blocks by the chained hash of their tokens.

use super::chain::NO_BLOCK;
use crate::ids::{BlockId, TreeId};
use crate::key::mix;

/// A full block of some prompt. Its tokens are compared before it is shared: a hash is no proof.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prefix {
    pub(super) block: BlockId,
    /// A tree whose prompt the block belongs to.
    pub(super) tree: TreeId,
}

/// An entry of the table, kept by block.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// 0 for a block that is not in the table.
    hash: u64,
    tree: TreeId,
    /// The next block of the same bucket.
    next: BlockId,
}

const NO_ENTRY: Entry = Entry { hash: 0, tree: TreeId(0), next: NO_BLOCK };

/// Where full blocks of prompts are resident: a hash table of fixed size whose lists run through
/// the blocks themselves, so that it neither allocates nor has an order of its own.
#[derive(Debug, Clone)]
pub(super) struct PrefixTable {
    entries: Vec<Entry>,
    buckets: Vec<BlockId>,
}

/// Hash of an empty prefix.
pub(super) const EMPTY_PREFIX: u64 = 0x7072_6566_6978;

/// How much of a tree's prompt was hashed last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    pub(super) num_blocks: u32,
    pub(super) hash: u64,
}

impl Published {
    pub(super) const NOTHING: Self = Self { num_blocks: 0, hash: EMPTY_PREFIX };
}

impl Default for Published {
    fn default() -> Self {
        Self::NOTHING
    }
}

/// The hash of a prefix that goes on with these tokens; never 0.
pub(super) fn chain_hash(prefix: u64, tokens: &[u32]) -> u64 {
    tokens.iter().fold(prefix, |hash, &token| mix(hash, u64::from(token) + 1)).max(1)
}

impl PrefixTable {
    pub(super) fn new(num_blocks: u32) -> Self {
        let num_buckets = (num_blocks as usize).next_power_of_two();
        Self { entries: vec![NO_ENTRY; num_blocks as usize], buckets: vec![NO_BLOCK; num_buckets] }
    }

    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }

    pub(super) fn get(&self, hash: u64) -> Option<Prefix> {
        let mut block = self.buckets[self.bucket(hash)];
        while block != NO_BLOCK {
            let entry = self.entries[block.index()];
            if entry.hash == hash {
                return Some(Prefix { block, tree: entry.tree });
            }
            block = entry.next;
        }
        None
    }

    /// Makes a block known; the first one with a hash stays.
    pub(super) fn insert(&mut self, hash: u64, Prefix { block, tree }: Prefix) {
        if self.entries[block.index()].hash == 0 && self.get(hash).is_none() {
            let bucket = self.bucket(hash);
            let next = std::mem::replace(&mut self.buckets[bucket], block);
            self.entries[block.index()] = Entry { hash, tree, next };
        }
    }

    /// Forgets a block that is freed.
    pub(super) fn remove(&mut self, block: BlockId) {
        let Entry { hash, next, .. } =
            std::mem::replace(&mut self.entries[block.index()], NO_ENTRY);
        if hash == 0 {
            return;
        }
        let bucket = self.bucket(hash);
        if self.buckets[bucket] == block {
            self.buckets[bucket] = next;
            return;
        }
        let mut before = self.buckets[bucket];
        while self.entries[before.index()].next != block {
            before = self.entries[before.index()].next;
        }
        self.entries[before.index()].next = next;
    }

    /// Forgets all: what is resident was computed with other weights.
    pub(super) fn clear(&mut self) {
        self.entries.fill(NO_ENTRY);
        self.buckets.fill(NO_BLOCK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_a_list_of_pairs() {
        let (mut table, mut list) = (PrefixTable::new(9), Vec::<(u64, u32)>::new());
        let mut state = 1u64;
        for _ in 0..5_000 {
            state = mix(state, 7);
            let (block, hash) = (1 + (state % 8) as u32, 1 + (state >> 20) % 12);
            if state >> 60 < 6 {
                table.remove(BlockId(block));
                list.retain(|&(_, other)| other != block);
            } else {
                table.insert(hash, Prefix { block: BlockId(block), tree: TreeId(0) });
                if !list.iter().any(|&(known, other)| known == hash || other == block) {
                    list.push((hash, block));
                }
            }
            for hash in 1..13 {
                let expected = list.iter().find(|pair| pair.0 == hash).map(|pair| pair.1);
                assert_eq!(table.get(hash).map(|prefix| prefix.block.0), expected);
            }
        }
    }
}
