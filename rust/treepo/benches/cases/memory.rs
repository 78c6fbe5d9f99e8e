//! Forks, frees and appends. The tree of `free` and `append`: 512 tokens, 32 nodes of 512 on them,
//! 16 children of 64 on each node, so 512 paths of 1,088 tokens.

use std::hint::black_box;

use treepo::memory::Memory;
use treepo::{Forest, ForkOrigin, PathId, Result, TreeId};

use super::{BLOCK_SIZE, Run, TOKEN, prompt};

pub(crate) const NUM_FORKS: u32 = 1_024;
pub(crate) const NUM_LEAVES: u32 = NUM_NODES * NUM_CHILDREN;
pub(crate) const NUM_APPENDS: u32 = NUM_LEAVES * CHILD_LEN;

const NUM_NODES: u32 = 32;
const NUM_CHILDREN: u32 = 16;
const PROMPT_LEN: u32 = 512;
const NODE_END: u32 = 1_024;
const CHILD_LEN: u32 = 64;

const TREE: TreeId = TreeId(0);
const ROOT: PathId = PathId(0);

/// Forest and memory of one tree whose root path is resident.
struct State {
    forest: Forest,
    memory: Memory,
}

impl State {
    fn new(num_blocks: u32, len: u32) -> Result<Self> {
        let (mut forest, mut memory) = (Forest::new(), Memory::new(num_blocks, BLOCK_SIZE)?);
        forest.add_tree(0, 0, &prompt(0, len))?;
        memory.add_path(TREE, ROOT)?;
        memory.extend(TREE, ROOT, len)?;
        Ok(Self { forest, memory })
    }

    fn fork(&mut self, from: PathId, at: u32) -> Result<PathId> {
        let path = self.forest.fork(TREE, from, at, ForkOrigin::Branch)?;
        self.fork_memory(from, path, at)?;
        Ok(path)
    }

    fn fork_memory(&mut self, from: PathId, to: PathId, at: u32) -> Result<()> {
        self.memory.add_path(TREE, to)?;
        self.memory.fork(TREE, from, to, at)
    }

    /// Appends tokens one by one, as decoding does.
    fn append(&mut self, path: PathId, from: u32, to: u32) -> Result<()> {
        for len in from..to {
            self.forest.push_token(TREE, path, TOKEN, 0)?;
            self.memory.extend(TREE, path, len + 1)?;
        }
        Ok(())
    }

    /// The tree up to its leaves' forks.
    fn with_leaves() -> Result<(Self, Vec<PathId>)> {
        let num_blocks = 2 * (NUM_NODES * NODE_END + NUM_LEAVES * 2 * CHILD_LEN) / BLOCK_SIZE;
        let mut state = Self::new(num_blocks, PROMPT_LEN)?;
        let mut leaves = vec![ROOT];
        for _ in 1..NUM_NODES {
            leaves.push(state.fork(ROOT, PROMPT_LEN)?);
        }
        for node in leaves.clone() {
            state.append(node, PROMPT_LEN, NODE_END)?;
            for _ in 1..NUM_CHILDREN {
                leaves.push(state.fork(node, NODE_END)?);
            }
        }
        Ok((state, leaves))
    }
}

/// The root's length: its last block is partly filled.
fn len_of(num_blocks: u32) -> u32 {
    num_blocks * BLOCK_SIZE - BLOCK_SIZE / 2
}

/// A path of `num_blocks` blocks is forked at its end.
pub(crate) fn fork(num_blocks: u32) -> Result<Run> {
    let len = len_of(num_blocks);
    let mut state = State::new(num_blocks + NUM_FORKS, len)?;
    state.fork(ROOT, len)?;
    Ok(Box::new(move || {
        for _ in 0..NUM_FORKS {
            black_box(state.fork(ROOT, len).expect("the root can be forked"));
        }
    }))
}

/// As [`fork`], in memory alone.
pub(crate) fn fork_alone(num_blocks: u32) -> Result<Run> {
    let len = len_of(num_blocks);
    let mut state = State::new(num_blocks + NUM_FORKS, len)?;
    state.fork_memory(ROOT, PathId(1), len)?;
    Ok(Box::new(move || {
        for path in 0..NUM_FORKS {
            state.fork_memory(ROOT, PathId(2 + path), len).expect("the root can be forked");
        }
        black_box(&state);
    }))
}

/// Every leaf gets its tokens, one after another.
pub(crate) fn append() -> Result<Run> {
    let (mut state, leaves) = State::with_leaves()?;
    for &leaf in &leaves {
        state.append(leaf, NODE_END, NODE_END + 1)?;
    }
    Ok(Box::new(move || {
        for len in NODE_END + 1..=NODE_END + CHILD_LEN {
            for &leaf in &leaves {
                state.append(leaf, len, len + 1).expect("the pool suffices");
            }
        }
        black_box(&state);
    }))
}

/// Every leaf is freed.
pub(crate) fn free() -> Result<Run> {
    let (mut state, leaves) = State::with_leaves()?;
    for &leaf in &leaves {
        state.append(leaf, NODE_END, NODE_END + CHILD_LEN)?;
    }
    Ok(Box::new(move || {
        for &leaf in &leaves {
            state.memory.free_path(TREE, leaf).expect("the leaf holds memory");
        }
        let pool = state.memory.pool();
        assert_eq!(pool.num_free(), pool.capacity(), "blocks of the tree are left");
    }))
}
