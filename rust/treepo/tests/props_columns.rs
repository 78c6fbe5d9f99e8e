//! The forest's columns and nodes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod naive_forest;

use naive_forest::{Pair, op};
use proptest::prelude::*;
use treepo::forest::{Columns, Nodes};
use treepo::{FinishReason, Forest, ForkOrigin, PathId, SampledToken, Tree};

fn depths(forest: &Forest) -> Vec<u32> {
    let paths = forest.trees().iter().flat_map(Tree::paths);
    paths.map(|path| path.depth_at_fork).collect()
}

fn bits(columns: &Columns) -> String {
    format!("{columns:?}")
}

/// Every token lies in one node; preorder; leaves; no node is empty; children continue parents.
fn check_nodes(columns: &Columns, nodes: &Nodes) {
    let mut seen = vec![0; columns.token_id.len()];
    for node in 0..nodes.path.len() {
        let path = nodes.path[node] as usize;
        assert!(nodes.start[node] < nodes.end[node], "node {node} is empty");
        let shift = columns.token_start[path] as i32 - columns.path_at[path];
        for position in nodes.start[node]..nodes.end[node] {
            seen[(position + shift) as usize] += 1;
        }
        check_place(columns, nodes, node);
    }
    assert!(seen.iter().all(|&count| count == 1), "tokens in nodes: {seen:?}");
    for (path, &leaf) in nodes.leaf.iter().enumerate() {
        assert_eq!(nodes.end[leaf as usize], columns.path_length[path], "leaf of path {path}");
    }
}

fn check_place(columns: &Columns, nodes: &Nodes, node: usize) {
    let (parent, end) = (nodes.parent[node], nodes.subtree_end[node] as usize);
    assert!(end > node && end <= nodes.path.len());
    let tree = columns.path_tree[nodes.path[node] as usize];
    assert_eq!(nodes.tree[node], tree);
    if parent < 0 {
        let prompt_len = columns.tree_prompt_len[tree as usize];
        assert_eq!((nodes.start[node], nodes.end[node], nodes.depth[node]), (0, prompt_len, 0));
        return;
    }
    let parent = parent as usize;
    assert!(parent < node && end <= nodes.subtree_end[parent] as usize, "not nested");
    assert_eq!(nodes.start[node], nodes.end[parent], "a child starts where its parent ends");
    let step = nodes.depth[node] - nodes.depth[parent];
    assert!(step == 0 || step == 1, "depth grows by {step}");
}

proptest! {
    #[test]
    fn columns_describe_the_forest_completely(ops in prop::collection::vec(op(), 0..60)) {
        let forest = Pair::grow(&ops).forest;
        let columns = forest.columns();
        let again = Forest::from_columns(&columns).unwrap();
        prop_assert_eq!(bits(&columns), bits(&again.columns()));
        prop_assert_eq!(forest.nodes(), again.nodes());
        prop_assert_eq!(depths(&forest), depths(&again));
    }

    #[test]
    fn nodes_partition_the_tokens_in_preorder(ops in prop::collection::vec(op(), 0..80)) {
        let forest = Pair::grow(&ops).forest;
        check_nodes(&forest.columns(), &forest.nodes());
    }

    #[test]
    fn altered_columns_are_refused_or_describe_a_forest(
        ops in prop::collection::vec(op(), 0..40),
        changes in prop::collection::vec(change(), 1..4),
    ) {
        let mut columns = Pair::grow(&ops).forest.columns();
        for change in changes {
            alter_columns(&mut columns, change);
        }
        if let Ok(forest) = Forest::from_columns(&columns) {
            forest.check().unwrap();
            check_nodes(&forest.columns(), &forest.nodes());
            for is_replayable in &mut columns.tree_replayable {
                *is_replayable = u8::from(*is_replayable != 0);
            }
            prop_assert_eq!(bits(&forest.columns()), bits(&columns), "loaded as something else");
        }
    }
}

/// One change of one element or of a column's length.
#[derive(Debug, Clone, Copy)]
enum Change {
    Put,
    Swap,
    Repeat,
    Remove,
    Truncate,
}

fn change() -> impl Strategy<Value = (usize, Change, usize, i64)> {
    let change = prop_oneof![
        6 => Just(Change::Put),
        3 => Just(Change::Swap),
        1 => Just(Change::Repeat),
        1 => Just(Change::Remove),
        1 => Just(Change::Truncate),
    ];
    let extremes = [i64::MIN, i64::MAX, 1 << 31, -(1 << 31), (1 << 31) - 1, -1, 0, 255];
    let value = prop_oneof![2 => prop::sample::select(extremes.to_vec()), 3 => -3i64..40];
    (0usize..23, change, any::<usize>(), value)
}

fn alter<T: Copy>(column: &mut Vec<T>, change: Change, place: usize, value: T) {
    let len = column.len();
    if len == 0 {
        column.push(value);
        return;
    }
    let place = place % len;
    match change {
        Change::Put => column[place] = value,
        Change::Swap => column.swap(place, (place + 1) % len),
        Change::Repeat => column.insert(place, column[place]),
        Change::Remove => drop(column.remove(place)),
        Change::Truncate => column.truncate(place),
    }
}

fn alter_columns(columns: &mut Columns, change: (usize, Change, usize, i64)) {
    let (column, change, place, value) = change;
    let i32s = [
        &mut columns.tree_prompt_len,
        &mut columns.path_start,
        &mut columns.path_tree,
        &mut columns.path_parent,
        &mut columns.path_at,
        &mut columns.path_length,
        &mut columns.token_id,
        &mut columns.token_version,
        &mut columns.mark_path,
        &mut columns.mark_pos,
    ];
    let bytes = [
        &mut columns.tree_replayable,
        &mut columns.tree_dependence,
        &mut columns.path_finish,
        &mut columns.path_origin,
        &mut columns.token_kind,
    ];
    let floats = [
        &mut columns.path_weight,
        &mut columns.path_reward,
        &mut columns.token_logprob,
        &mut columns.token_entropy,
    ];
    let words = [&mut columns.tree_key, &mut columns.tree_stream, &mut columns.path_stream];
    let i32s = i32s.into_iter().enumerate();
    i32s.filter(|(i, _)| *i == column).for_each(|(_, c)| alter(c, change, place, value as i32));
    let bytes = (10..).zip(bytes);
    bytes.filter(|(i, _)| *i == column).for_each(|(_, c)| alter(c, change, place, value as u8));
    let floats = (15..).zip(floats);
    floats.filter(|(i, _)| *i == column).for_each(|(_, c)| alter(c, change, place, value as f32));
    let words = (19..).zip(words);
    words.filter(|(i, _)| *i == column).for_each(|(_, c)| alter(c, change, place, value as u64));
    if column == 22 {
        alter(&mut columns.token_start, change, place, value);
    }
}

#[test]
fn columns_of_a_small_forest_are_these() {
    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 7, &[5, 6]).unwrap();
    let push = |forest: &mut Forest, path, id, version| {
        let token = SampledToken { id, logprob: -1.0, entropy: 2.0 };
        forest.push_token(tree, PathId(path), token, version).unwrap();
    };
    push(&mut forest, 0, 8, 0);
    forest.mark(tree, PathId(0)).unwrap();
    forest.fork(tree, PathId(0), 3, ForkOrigin::Branch).unwrap();
    push(&mut forest, 0, 9, 3);
    push(&mut forest, 1, 10, 3);
    forest.finish(tree, PathId(1), FinishReason::Stop).unwrap();
    let columns = forest.columns();
    assert_eq!(columns.token_id, [5, 6, 8, 9, 10]);
    assert_eq!(columns.token_kind, [0, 0, 1, 1, 1]);
    assert_eq!(columns.token_version, [0, 0, 0, 3, 3]);
    assert_eq!(columns.token_start, [0, 4, 5]);
    assert_eq!((columns.path_parent, columns.path_at), (vec![-1, 0], vec![0, 3]));
    assert_eq!((columns.path_length, columns.path_finish), (vec![4, 4], vec![0, 1]));
    assert_eq!((columns.mark_path, columns.mark_pos), (vec![0], vec![3]));
    let nodes = forest.nodes();
    assert_eq!((nodes.start, nodes.end), (vec![0, 2, 3, 3], vec![2, 3, 4, 4]));
    assert_eq!((nodes.parent, nodes.depth), (vec![-1, 0, 1, 1], vec![0, 1, 2, 2]));
    assert_eq!((nodes.subtree_end, nodes.leaf), (vec![4, 4, 3, 4], vec![2, 3]));
}
