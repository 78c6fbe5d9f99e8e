//! What a path takes over from others: its relatives' chains, and equal prompts of other trees.

use super::prefix::{EMPTY_PREFIX, Prefix, Published, chain_hash};
use super::{Memory, NO_BLOCK, PathMemory, Pending};
use crate::error::{Error, Result};
use crate::forest::{Forest, Tree};
use crate::ids::{BlockId, PathId, TreeId};

/// Relatives that are asked for a common chain, besides the ancestors: the youngest.
const MAX_RELATIVES: u32 = 64;

impl Memory {
    /// Lets `to` share the first `at` tokens of `from`, in place of what it holds. O(1) at the end
    /// of `from`, else O(blocks behind `at`).
    ///
    /// # Errors
    /// `InvalidInput` for unknown paths or if less is resident.
    pub fn fork(&mut self, tree: TreeId, from: PathId, to: PathId, at: u32) -> Result<()> {
        self.checked(tree, to)?;
        let resident = self.checked(tree, from)?.computed;
        if at > resident || from == to {
            return Err(Error::InvalidInput(format!(
                "path {to} cannot share {at} tokens of path {from}, which has {resident}"
            )));
        }
        self.share(tree, to, from, at)
    }

    pub(crate) fn share(
        &mut self,
        tree: TreeId,
        path: PathId,
        donor: PathId,
        len: u32,
    ) -> Result<()> {
        let source = *self.at(tree, donor);
        let (num_full, partial) = (len / self.block_size, len % self.block_size);
        let pending = (partial > 0).then(|| Pending {
            from: self.filled(self.block_of(&source, num_full)),
            num_slots: partial,
        });
        let steps = source.num_blocks.saturating_sub(num_full);
        let tail = if num_full == 0 { NO_BLOCK } else { self.chains.back(source.tail, steps) };
        let front = if num_full == 0 { NO_BLOCK } else { source.front };
        let computed = len;
        let num_blocks = num_full;
        self.take(tree, path, PathMemory { front, tail, num_blocks, computed, pending, ..source })
    }

    /// Exchanges what the path holds.
    fn take(&mut self, tree: TreeId, path: PathId, chain: PathMemory) -> Result<()> {
        if let Some(pending) = chain.pending {
            self.chains.hold(pending.from)?;
        }
        self.chains.hold(chain.tail)?;
        self.free_path(tree, path)?;
        let PathMemory { usage, offers, .. } = *self.at(tree, path);
        *self.at_mut(tree, path) = PathMemory { usage, offers, ..chain };
        self.offer(tree, path);
        Ok(())
    }

    /// The block with this logical index on a chain; the source of a pending copy stands for the
    /// block that will be copied.
    fn block_of(&self, own: &PathMemory, index: u32) -> BlockId {
        match own.pending {
            Some(pending) if index == own.num_blocks => pending.from,
            _ => self.chains.back(own.tail, own.num_blocks - 1 - index),
        }
    }

    /// The block to read in place of one that the open plan only copies to: all sources are read
    /// before any destination is written.
    fn filled(&self, block: BlockId) -> BlockId {
        self.copying.iter().find(|copy| copy.to == block).map_or(block, |copy| copy.from)
    }

    /// Gives a path that has lost memory, or never had any, what its relatives or other trees with
    /// the same prompt have resident of its tokens, if that is more than it has.
    pub(crate) fn attach(
        &mut self,
        forest: &Forest,
        tree: TreeId,
        path: PathId,
        source: Option<PathId>,
    ) -> Result<u32> {
        let own_tree = forest.tree(tree)?;
        let (donor, shared) = self.best_relative(own_tree, tree, path, source);
        let computed = self.at(tree, path).computed;
        if let Some(donor) = donor.filter(|_| shared > computed) {
            self.share(tree, path, donor, shared)?;
        }
        let computed = self.at(tree, path).computed;
        let prompt_len = own_tree.prompt_len;
        if computed >= prompt_len / self.block_size * self.block_size {
            return Ok(0);
        }
        let found = self.find_prefix(forest, own_tree);
        if found.computed <= computed {
            return Ok(0);
        }
        self.take(tree, path, found)?;
        Ok(found.computed - computed)
    }

    /// The relative that has the most of the path's tokens resident; the oldest of equals.
    fn best_relative(
        &self,
        own_tree: &Tree,
        tree: TreeId,
        path: PathId,
        source: Option<PathId>,
    ) -> (Option<PathId>, u32) {
        let mut best = (None, 0);
        let mut consider = |relative: PathId| {
            let resident = self.at(tree, relative).computed;
            if relative != path && resident >= best.1.max(1) {
                let shared = resident.min(own_tree.shared_len(path, relative));
                if shared > best.1 || (shared == best.1 && best.0 > Some(relative)) {
                    best = (Some(relative), shared);
                }
            }
        };
        let num_paths = self.trees[tree.index()].paths.len() as u32;
        for p in num_paths.saturating_sub(MAX_RELATIVES)..num_paths {
            consider(PathId(p));
        }
        source.into_iter().for_each(&mut consider);
        let mut ancestor = own_tree.own(path).parent();
        while let Some(relative) = ancestor {
            consider(relative);
            ancestor = own_tree.own(relative).parent();
        }
        best
    }

    /// The longest resident chain of full blocks that begins as the tree's prompt does.
    fn find_prefix(&self, forest: &Forest, own_tree: &Tree) -> PathMemory {
        let mut found = PathMemory { version: self.prefix_version, ..PathMemory::EMPTY };
        let mut hash = EMPTY_PREFIX;
        for tokens in own_tree.prompt().chunks_exact(self.block_size as usize) {
            hash = chain_hash(hash, tokens);
            let Some(Prefix { block, tree }) = self.prefixes.get(hash) else { break };
            let start = found.computed as usize;
            let same = forest.trees().get(tree.index()).is_some_and(|other| {
                other.prompt().get(start..start + tokens.len()) == Some(tokens)
            });
            if !same || self.chains.before(block) != found.tail {
                break;
            }
            found.front = if found.num_blocks == 0 { block } else { found.front };
            found.tail = block;
            found.num_blocks += 1;
            found.computed += self.block_size;
        }
        found
    }

    /// Makes the full blocks of the prompt known that are computed with positions `start..end`,
    /// unless the path's first tokens are older than the last flush. O(tokens of these blocks), and
    /// O(prompt in front of `end`) where blocks before those that the tree published last are new.
    pub(crate) fn publish_prefix(
        &mut self,
        own_tree: &Tree,
        tree: TreeId,
        path: PathId,
        start: u32,
        end: u32,
    ) {
        let (size, version) = (self.block_size, self.prefix_version);
        let own = self.at_mut(tree, path);
        if start == 0 {
            own.version = version;
        }
        let own = *own;
        let (first, last) = (start / size, end.min(own_tree.prompt_len) / size);
        if first >= last || own.version != version {
            return;
        }
        self.hashes.clear();
        let published = self.trees[tree.index()].published;
        let Published { num_blocks: from, mut hash } =
            if published.num_blocks <= first { published } else { Published::NOTHING };
        let blocks = own_tree.prompt().chunks_exact(size as usize).skip(from as usize);
        for (index, tokens) in (from..last).zip(blocks) {
            hash = chain_hash(hash, tokens);
            if index >= first {
                self.hashes.push(hash);
            }
        }
        self.trees[tree.index()].published = Published { num_blocks: last, hash };
        let mut block = own.tail;
        for index in (first..own.num_blocks).rev() {
            if let Some(&hash) = self.hashes.get((index - first) as usize) {
                self.prefixes.insert(hash, Prefix { block, tree });
            }
            block = self.chains.before(block);
        }
    }

    /// Shares no prefix from here on that is resident now: the weights are new.
    pub(crate) fn flush_prefixes(&mut self) {
        self.prefixes.clear();
        self.prefix_version += 1;
    }

    /// An error unless the path's chain can hold `len` tokens.
    pub(crate) fn check_fits(&self, len: u32) -> Result<()> {
        let (needed, available) = (self.blocks_for(len), self.pool().capacity());
        if needed > available {
            return Err(Error::PoolTooSmall { needed, available });
        }
        Ok(())
    }
}
