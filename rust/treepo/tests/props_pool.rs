//! The block pool against a map of counts.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use treepo::{BlockId, BlockPool};

#[derive(Debug, Clone)]
enum Op {
    Allocate,
    Retain(u32),
    Release(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::Allocate),
        1 => (0u32..12).prop_map(Op::Retain),
        3 => (0u32..12).prop_map(Op::Release),
    ]
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
            assert_eq!(pool.retain(BlockId(block)).is_ok(), counts.contains_key(&block));
            counts.entry(block).and_modify(|count| *count += 1);
        }
        Op::Release(block) => {
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

proptest! {
    #[test]
    fn b1_b2_the_pool_counts_like_a_map(
        num_blocks in 2u32..12,
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let mut pool = BlockPool::new(num_blocks).unwrap();
        let mut counts = BTreeMap::new();
        for op in &ops {
            apply(op, &mut pool, &mut counts);
            prop_assert!(pool.check().is_ok());
            prop_assert_eq!(pool.num_free() as usize + counts.len(), pool.capacity() as usize);
            for block in 0..num_blocks {
                let expected = counts.get(&block).copied().unwrap_or(0);
                prop_assert_eq!(pool.count(BlockId(block)), expected);
            }
        }
    }
}
