//! Block tables against a model that stores every path's tokens: what a path reads through its
//! table is what was written for it, whoever else shares, copies or frees.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use treepo::{BlockId, Error, Memory, PathId, TreeId};

#[derive(Debug, Clone)]
enum Op {
    AddTree,
    Fork { path: usize, at: usize },
    Extend { path: usize, by: u32 },
    FreePath(usize),
    FreeTree(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::AddTree),
        6 => (any::<usize>(), any::<usize>()).prop_map(|(path, at)| Op::Fork { path, at }),
        8 => (any::<usize>(), 1u32..9).prop_map(|(path, by)| Op::Extend { path, by }),
        2 => any::<usize>().prop_map(Op::FreePath),
        1 => any::<usize>().prop_map(Op::FreeTree),
    ]
}

/// A path of the model; `tokens` is what its slots must read.
#[derive(Debug, Clone)]
struct ModelPath {
    tree: u32,
    path: u32,
    tokens: Vec<u64>,
}

struct Machine {
    memory: Memory,
    size: usize,
    slots: Vec<u64>,
    paths: Vec<ModelPath>,
    num_trees: u32,
    num_paths_of: Vec<u32>,
    next_token: u64,
}

impl Machine {
    fn new(num_blocks: u32, size: u32) -> Self {
        Self {
            memory: Memory::new(num_blocks, size).unwrap(),
            size: size as usize,
            slots: vec![0; (num_blocks * size) as usize],
            paths: Vec::new(),
            num_trees: 0,
            num_paths_of: Vec::new(),
            next_token: 1,
        }
    }

    fn add_path(&mut self, tree: u32, tokens: Vec<u64>) -> (TreeId, PathId) {
        let path = self.num_paths_of[tree as usize];
        self.num_paths_of[tree as usize] += 1;
        self.memory.add_path(TreeId(tree), PathId(path)).unwrap();
        self.paths.push(ModelPath { tree, path, tokens });
        (TreeId(tree), PathId(path))
    }

    fn apply(&mut self, op: &Op) {
        let count = self.paths.len();
        match *op {
            Op::AddTree => {
                self.num_paths_of.push(0);
                self.add_path(self.num_trees, Vec::new());
                self.num_trees += 1;
            }
            Op::Fork { path, at } if count > 0 => {
                let source = self.paths[path % count].clone();
                let at = at % (source.tokens.len() + 1);
                let (tree, child) = self.add_path(source.tree, source.tokens[..at].to_vec());
                self.memory.fork(tree, PathId(source.path), child, at as u32).unwrap();
            }
            Op::Extend { path, by } if count > 0 => self.extend(path % count, by),
            Op::FreePath(path) if count > 0 => {
                let own = &mut self.paths[path % count];
                own.tokens.clear();
                self.memory.free_path(TreeId(own.tree), PathId(own.path)).unwrap();
            }
            Op::FreeTree(tree) if self.num_trees > 0 => {
                let tree = tree as u32 % self.num_trees;
                self.memory.free_tree(TreeId(tree)).unwrap();
                self.paths.retain(|path| path.tree != tree);
                self.num_paths_of[tree as usize] = 0;
            }
            _ => {}
        }
        self.check();
    }

    fn extend(&mut self, p: usize, by: u32) {
        let own = self.paths[p].clone();
        let (tree, path) = (TreeId(own.tree), PathId(own.path));
        let len = own.tokens.len() as u32 + by;
        let copy = match self.memory.extend(tree, path, len) {
            Ok(copy) => copy,
            Err(Error::PoolTooSmall { .. }) => {
                self.paths[p].tokens.clear();
                self.memory.free_path(tree, path).unwrap();
                return;
            }
            Err(error) => panic!("{error}"),
        };
        if let Some(copy) = copy {
            let (from, to) = (copy.from.index() * self.size, copy.to.index() * self.size);
            self.slots.copy_within(from..from + copy.num_slots as usize, to);
        }
        let table = self.memory.block_table(tree, path).unwrap();
        for position in own.tokens.len()..len as usize {
            self.slots[slot(&table, position, self.size)] = self.next_token;
            self.paths[p].tokens.push(self.next_token);
            self.next_token += 1;
        }
    }

    fn check(&self) {
        self.memory.check().unwrap();
        let mut held: Vec<BlockId> = Vec::new();
        for own in &self.paths {
            let (tree, path) = (TreeId(own.tree), PathId(own.path));
            let table = self.memory.block_table(tree, path).unwrap();
            assert_eq!(self.memory.num_computed(tree, path).unwrap() as usize, own.tokens.len());
            for (position, token) in own.tokens.iter().enumerate() {
                if position / self.size < table.len() {
                    assert_eq!(self.slots[slot(&table, position, self.size)], *token);
                }
            }
            held.extend(table);
        }
        held.sort_unstable();
        held.dedup();
        let resident = self.memory.pool().capacity() - self.memory.pool().num_free();
        let num_pending = resident as usize - held.len();
        assert!(num_pending <= self.paths.len(), "more is held than tables and pending copies");
    }
}

fn slot(table: &[BlockId], position: usize, size: usize) -> usize {
    table[position / size].index() * size + position % size
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn paths_read_what_was_written_for_them(
        ops in prop::collection::vec(op(), 1..120),
        num_blocks in 2u32..60,
        size in 1u32..6,
    ) {
        let mut machine = Machine::new(num_blocks, size);
        machine.apply(&Op::AddTree);
        for op in &ops {
            machine.apply(op);
        }
        for tree in 0..machine.num_trees {
            machine.memory.free_tree(TreeId(tree)).unwrap();
        }
        let pool = machine.memory.pool();
        prop_assert_eq!(pool.num_free(), pool.capacity(), "B4");
    }
}

#[test]
fn misuse_is_an_error_and_changes_nothing() {
    let mut memory = Memory::new(4, 2).unwrap();
    let (tree, path, other) = (TreeId(0), PathId(0), PathId(1));
    assert!(memory.add_path(TreeId(1), path).is_err());
    assert!(memory.add_path(tree, other).is_err());
    memory.add_path(tree, path).unwrap();
    memory.add_path(tree, other).unwrap();
    assert!(memory.extend(TreeId(3), path, 1).is_err());
    assert!(memory.fork(tree, path, other, 1).is_err(), "nothing is resident");
    assert!(memory.fork(tree, path, path, 0).is_err());
    assert!(memory.free_path(tree, PathId(9)).is_err());
    assert!(memory.free_tree(TreeId(9)).is_err());
    assert!(memory.block_table(tree, PathId(9)).is_err());
    assert_eq!(
        memory.extend(tree, path, 99),
        Err(Error::PoolTooSmall { needed: 50, available: 3 })
    );
    memory.check().unwrap();
    memory.free_tree(tree).unwrap();
    assert_eq!(memory.pool().num_free(), 3);
}
