//! The forest against plain token vectors, and the laws of columns and nodes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use treepo::forest::{Columns, Nodes};
use treepo::{FinishReason, Forest, ForkOrigin, PathId, SampledToken, TokenKind, TreeId};

#[derive(Debug, Clone)]
enum Op {
    AddTree(usize),
    Push(usize, u32),
    Given(usize),
    Fork(usize, usize),
    Mark(usize),
    Finish(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let any = any::<usize>;
    prop_oneof![
        1 => (1usize..4).prop_map(Op::AddTree),
        8 => (any(), 0u32..3).prop_map(|(path, version)| Op::Push(path, version)),
        1 => any().prop_map(Op::Given),
        4 => (any(), any()).prop_map(|(path, at)| Op::Fork(path, at)),
        3 => any().prop_map(Op::Mark),
        1 => any().prop_map(Op::Finish),
    ]
}

/// What a path should hold: each token with its version, and the marks of the whole sequence.
#[derive(Debug, Clone)]
struct NaivePath {
    tree: TreeId,
    path: PathId,
    prompt_len: usize,
    tokens: Vec<(u32, TokenKind)>,
    marks: BTreeSet<usize>,
    is_finished: bool,
}

#[derive(Debug, Default)]
struct Pair {
    forest: Forest,
    naive: Vec<NaivePath>,
    next_token: u32,
}

impl Pair {
    fn grow(ops: &[Op]) -> Self {
        let mut pair = Self::default();
        pair.apply(&Op::AddTree(2));
        for op in ops {
            pair.apply(op);
        }
        pair
    }

    fn token(&mut self) -> u32 {
        self.next_token += 1;
        self.next_token
    }

    fn apply(&mut self, op: &Op) {
        let n = self.naive.len();
        match *op {
            Op::AddTree(len) => self.add_tree(len),
            Op::Push(p, version) => self.push(p % n, version),
            Op::Given(p) => self.give(p % n),
            Op::Fork(p, at) => self.fork(p % n, at),
            Op::Mark(p) => self.mark(p % n),
            Op::Finish(p) => {
                let own = &mut self.naive[p % n];
                let result = self.forest.finish(own.tree, own.path, FinishReason::Length);
                assert_eq!(result.is_ok(), !own.is_finished);
                own.is_finished = true;
            }
        }
    }

    fn add_tree(&mut self, prompt_len: usize) {
        let prompt: Vec<u32> = (0..prompt_len).map(|_| self.token()).collect();
        let tree = self.forest.add_tree(0, self.naive.len() as u64, &prompt).unwrap();
        let tokens = prompt.into_iter().map(|id| (id, TokenKind::Prompt)).collect();
        let (path, marks, is_finished) = (PathId(0), BTreeSet::new(), false);
        self.naive.push(NaivePath { tree, path, prompt_len, tokens, marks, is_finished });
    }

    fn push(&mut self, p: usize, version: u32) {
        let id = self.token();
        let own = &mut self.naive[p];
        let token = SampledToken { id, logprob: -(id as f32), entropy: id as f32 };
        let result = self.forest.push_token(own.tree, own.path, token, version);
        assert_eq!(result.is_ok(), !own.is_finished);
        if !own.is_finished {
            own.tokens.push((id, TokenKind::Sampled));
        }
    }

    fn give(&mut self, p: usize) {
        let ids = [self.token(), self.token()];
        let own = &mut self.naive[p];
        let result = self.forest.push_given(own.tree, own.path, &ids);
        assert_eq!(result.is_ok(), !own.is_finished);
        if !own.is_finished {
            own.tokens.extend(ids.map(|id| (id, TokenKind::Given)));
        }
    }

    fn fork(&mut self, p: usize, at: usize) {
        let mut own = self.naive[p].clone();
        let at = at % (own.tokens.len() + 2);
        let result = self.forest.fork(own.tree, own.path, at as u32, ForkOrigin::Caller);
        assert_eq!(result.is_ok(), own.prompt_len <= at && at <= own.tokens.len());
        if let Ok(path) = result {
            own.path = path;
            own.tokens.truncate(at);
            own.marks.retain(|&mark| mark <= at);
            own.is_finished = false;
            self.naive.push(own);
        }
    }

    fn mark(&mut self, p: usize) {
        let own = self.naive[p].clone();
        let result = self.forest.mark(own.tree, own.path);
        assert_eq!(result.is_ok(), !own.is_finished);
        let len = own.tokens.len();
        let path = self.forest.path(own.tree, own.path).unwrap();
        if own.is_finished || len == own.prompt_len.max(path.at as usize) {
            return;
        }
        // tokens are unique, so whoever has the last one shares the segment that ends with it
        for other in &mut self.naive {
            if other.tokens.get(len - 1) == own.tokens.last() {
                other.marks.insert(len);
            }
        }
    }

    fn check(&self) {
        self.forest.check().unwrap();
        for own in &self.naive {
            let tree = self.forest.tree(own.tree).unwrap();
            let ids: Vec<u32> = own.tokens.iter().map(|token| token.0).collect();
            assert_eq!(tree.tokens(own.path), ids);
            let path = tree.path(own.path);
            let at = path.at as usize;
            let kinds: Vec<TokenKind> = own.tokens[at..].iter().map(|token| token.1).collect();
            assert_eq!(path.own_kinds(), kinds);
            assert_eq!(path.depth() as usize, own.marks.len());
            assert_eq!(path.finish.is_some(), own.is_finished);
            let len = own.tokens.len();
            let starts = own.marks.iter().copied().filter(|&mark| mark < len);
            let starts = std::iter::once(own.prompt_len).chain(starts);
            let starts: BTreeSet<u32> = starts.map(|at| at as u32).collect();
            assert_eq!(tree.boundaries(own.path), starts.into_iter().collect::<Vec<_>>());
        }
    }
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
    fn t3_t4_a_forest_is_its_paths_token_vectors(ops in prop::collection::vec(op(), 0..80)) {
        let mut pair = Pair::grow(&[]);
        for op in &ops {
            pair.apply(op);
        }
        pair.check();
    }

    #[test]
    fn columns_describe_the_forest_completely(ops in prop::collection::vec(op(), 0..60)) {
        let forest = Pair::grow(&ops).forest;
        let columns = forest.columns();
        let again = Forest::from_columns(&columns).unwrap();
        prop_assert_eq!(format!("{forest:?}"), format!("{again:?}"));
        prop_assert_eq!(bits(&columns), bits(&again.columns()));
    }

    #[test]
    fn nodes_partition_the_tokens_in_preorder(ops in prop::collection::vec(op(), 0..80)) {
        let forest = Pair::grow(&ops).forest;
        check_nodes(&forest.columns(), &forest.nodes());
    }

    #[test]
    fn broken_columns_are_refused_or_describe_a_forest(
        ops in prop::collection::vec(op(), 0..30),
        column in 0usize..11,
        place in any::<usize>(),
        value in prop_oneof![Just(-1i32), Just(i32::MAX), Just(i32::MIN), -3i32..40],
    ) {
        let mut columns = Pair::grow(&ops).forest.columns();
        spoil(&mut columns, column, place, value);
        if let Ok(forest) = Forest::from_columns(&columns) {
            forest.check().unwrap();
            check_nodes(&forest.columns(), &forest.nodes());
            prop_assert_eq!(bits(&forest.columns()), bits(&columns), "loaded as something else");
        }
    }
}

fn put<T>(column: &mut [T], place: usize, value: T) {
    if !column.is_empty() {
        let len = column.len();
        column[place % len] = value;
    }
}

fn spoil(columns: &mut Columns, column: usize, place: usize, value: i32) {
    match column {
        0 => put(&mut columns.tree_prompt_len, place, value),
        1 => put(&mut columns.path_start, place, value),
        2 => put(&mut columns.path_tree, place, value),
        3 => put(&mut columns.path_parent, place, value),
        4 => put(&mut columns.path_at, place, value),
        5 => put(&mut columns.token_start, place, i64::from(value)),
        6 => put(&mut columns.path_length, place, value),
        7 => put(&mut columns.path_finish, place, value as u8),
        8 => put(&mut columns.token_kind, place, value as u8),
        9 => put(&mut columns.mark_path, place, value),
        _ => put(&mut columns.mark_pos, place, value),
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
