//! Block tables against a model that stores every path's tokens.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use treepo::{BlockId, Error, Memory, PathId, TreeId};

#[derive(Debug, Arbitrary)]
enum Op {
    AddTree,
    Fork(u8, u8),
    Extend(u8, u8),
    FreePath(u8),
    FreeTree(u8),
}

/// A path of the model; `tokens` is what its slots must read.
#[derive(Clone)]
struct ModelPath {
    tree: TreeId,
    path: PathId,
    tokens: Vec<u64>,
}

struct Machine {
    memory: Memory,
    size: usize,
    slots: Vec<u64>,
    paths: Vec<ModelPath>,
    num_paths_of: Vec<u32>,
    next_token: u64,
}

impl Machine {
    fn add_path(&mut self, tree: TreeId, tokens: Vec<u64>) -> PathId {
        let path = PathId(self.num_paths_of[tree.index()]);
        self.num_paths_of[tree.index()] += 1;
        self.memory.add_path(tree, path).expect("the next path");
        self.paths.push(ModelPath { tree, path, tokens });
        path
    }

    fn apply(&mut self, op: &Op) {
        let (num_paths, num_trees) = (self.paths.len(), self.num_paths_of.len());
        match *op {
            Op::AddTree if num_trees < 100 => {
                self.num_paths_of.push(0);
                self.add_path(TreeId(num_trees as u32), Vec::new());
            }
            Op::Fork(path, at) if num_paths > 0 => {
                let source = self.paths[usize::from(path) % num_paths].clone();
                let at = usize::from(at) % (source.tokens.len() + 1);
                let child = self.add_path(source.tree, source.tokens[..at].to_vec());
                self.memory.fork(source.tree, source.path, child, at as u32).expect("resident");
            }
            Op::Extend(path, by) if num_paths > 0 => {
                self.extend(usize::from(path) % num_paths, usize::from(by % 10));
            }
            Op::FreePath(path) if num_paths > 0 => {
                let ModelPath { tree, path, tokens } =
                    &mut self.paths[usize::from(path) % num_paths];
                tokens.clear();
                self.memory.free_path(*tree, *path).expect("a path");
            }
            Op::FreeTree(tree) if num_trees > 0 => {
                let tree = TreeId(u32::from(tree) % num_trees as u32);
                self.memory.free_tree(tree).expect("a tree");
                self.paths.retain(|path| path.tree != tree);
                self.num_paths_of[tree.index()] = 0;
            }
            _ => {}
        }
        self.check();
    }

    fn extend(&mut self, p: usize, by: usize) {
        let ModelPath { tree, path, tokens } = self.paths[p].clone();
        let len = tokens.len() + by;
        let copy = match self.memory.extend(tree, path, len as u32) {
            Err(Error::PoolTooSmall { .. }) => return, // nothing has changed
            copy => copy.expect("no other error"),
        };
        if let Some(copy) = copy {
            let (from, to) = (copy.from.index() * self.size, copy.to.index() * self.size);
            self.slots.copy_within(from..from + copy.num_slots as usize, to);
        }
        let table = self.memory.block_table(tree, path).expect("a path");
        for position in tokens.len()..len {
            self.slots[slot(&table, position, self.size)] = self.next_token;
            self.paths[p].tokens.push(self.next_token);
            self.next_token += 1;
        }
    }

    fn check(&self) {
        self.memory.check().expect("the laws hold");
        for ModelPath { tree, path, tokens } in &self.paths {
            let table = self.memory.block_table(*tree, *path).expect("a path");
            assert_eq!(self.memory.num_computed(*tree, *path), Ok(tokens.len() as u32));
            for (position, token) in tokens.iter().enumerate().take(table.len() * self.size) {
                assert_eq!(self.slots[slot(&table, position, self.size)], *token);
            }
        }
    }
}

fn slot(table: &[BlockId], position: usize, size: usize) -> usize {
    table[position / size].index() * size + position % size
}

fuzz_target!(|input: (u8, u8, Vec<Op>)| {
    let (num_blocks, size) = (2 + u32::from(input.0 % 60), 1 + u32::from(input.1 % 6));
    let memory = Memory::new(num_blocks, size).expect("valid sizes");
    let mut machine = Machine {
        memory,
        size: size as usize,
        slots: vec![0; (num_blocks * size) as usize],
        paths: Vec::new(),
        num_paths_of: Vec::new(),
        next_token: 1,
    };
    input.2.iter().for_each(|op| machine.apply(op));
    for tree in 0..machine.num_paths_of.len() as u32 {
        machine.memory.free_tree(TreeId(tree)).expect("a tree");
    }
    assert_eq!(machine.memory.pool().num_free(), machine.memory.pool().capacity(), "B4");
});
