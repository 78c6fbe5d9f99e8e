//! The block pool against a map of counts.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use treepo::{BlockId, BlockPool};

#[derive(Debug, Arbitrary)]
enum Op {
    Allocate,
    Retain(u8),
    Release(u8),
}

/// Applies an operation to both and compares what they return.
fn apply(op: &Op, pool: &mut BlockPool, counts: &mut BTreeMap<u32, u32>) {
    match *op {
        Op::Allocate => match pool.allocate() {
            Some(BlockId(block)) => {
                assert!(block > 0 && block < pool.num_blocks(), "block {block} is handed out");
                assert_eq!(counts.insert(block, 1), None, "block {block} has a holder");
            }
            None => assert_eq!(counts.len() as u32, pool.capacity()),
        },
        Op::Retain(block) => {
            let block = u32::from(block);
            assert_eq!(pool.retain(BlockId(block)).is_ok(), counts.contains_key(&block));
            counts.entry(block).and_modify(|count| *count += 1);
        }
        Op::Release(block) => {
            let block = u32::from(block);
            let count = counts.get(&block).copied().unwrap_or(0);
            assert_eq!(pool.release(BlockId(block)).ok(), (count > 0).then_some(count == 1));
            match count {
                0 => {}
                1 => drop(counts.remove(&block)),
                _ => drop(counts.insert(block, count - 1)),
            }
        }
    }
}

fuzz_target!(|input: (u8, Vec<Op>)| {
    let (num_blocks, ops) = input;
    let Ok(mut pool) = BlockPool::new(u32::from(num_blocks)) else {
        assert!(num_blocks < 2);
        return;
    };
    let mut counts = BTreeMap::new();
    for op in &ops {
        apply(op, &mut pool, &mut counts);
        pool.check().expect("law B1");
        assert_eq!(pool.num_free() as usize + counts.len(), pool.capacity() as usize);
    }
    for block in 0..pool.num_blocks() {
        assert_eq!(pool.count(BlockId(block)), counts.get(&block).copied().unwrap_or(0));
    }
});
