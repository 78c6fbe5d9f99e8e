//! The forest against plain token vectors, and the laws of columns and nodes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use treepo::forest::{Columns, Nodes};
use treepo::{
    Dependence, FinishReason, Forest, ForkOrigin, PathId, PathToken, SampledToken, TokenKind, Tree,
    TreeId,
};

#[derive(Debug, Clone)]
enum Op {
    AddTree(usize),
    Push(usize, u32),
    Given(usize),
    Fork(usize, usize),
    Mark(usize),
    Finish(usize),
    Weigh(usize, f32),
    Depend(usize, Dependence),
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
        1 => (any(), -1f32..4.0).prop_map(|(path, weight)| Op::Weigh(path, weight)),
        1 => (any(), 0u8..2)
            .prop_map(|(path, number)| Op::Depend(path, Dependence::from_u8(number).unwrap())),
    ]
}

#[derive(Debug, Clone, Copy)]
struct NaiveToken {
    id: u32,
    kind: TokenKind,
    version: u32,
}

/// What a path should hold: each token with its version, and the marks of the whole sequence.
#[derive(Debug, Clone)]
struct NaivePath {
    tree: TreeId,
    path: PathId,
    prompt_len: usize,
    /// Tokens that it shares.
    at: usize,
    tokens: Vec<NaiveToken>,
    marks: BTreeSet<usize>,
    is_finished: bool,
    weight: f32,
}

fn numbers(kind: TokenKind, id: u32) -> SampledToken {
    if kind == TokenKind::Sampled {
        SampledToken { id, logprob: -(id as f32), entropy: id as f32 }
    } else {
        SampledToken { id, logprob: f32::NAN, entropy: f32::NAN }
    }
}

#[derive(Debug, Default)]
struct Pair {
    forest: Forest,
    naive: Vec<NaivePath>,
    dependence: Vec<Dependence>,
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
            Op::Weigh(p, weight) => {
                let own = &mut self.naive[p % n];
                let result = self.forest.set_weight(own.tree, own.path, weight);
                assert_eq!(result.is_ok(), weight >= 0.0);
                own.weight = if weight >= 0.0 { weight } else { own.weight };
            }
            Op::Depend(p, dependence) => {
                let tree = self.naive[p % n].tree;
                self.forest.set_dependence(tree, dependence).unwrap();
                self.dependence[tree.index()] = dependence;
            }
        }
    }

    fn add_tree(&mut self, prompt_len: usize) {
        let prompt: Vec<u32> = (0..prompt_len).map(|_| self.token()).collect();
        let tree = self.forest.add_tree(0, self.naive.len() as u64, &prompt).unwrap();
        let (kind, version) = (TokenKind::Prompt, 0);
        let tokens = prompt.into_iter().map(|id| NaiveToken { id, kind, version }).collect();
        self.naive.push(NaivePath {
            tree,
            path: PathId(0),
            prompt_len,
            at: 0,
            tokens,
            marks: BTreeSet::new(),
            is_finished: false,
            weight: 1.0,
        });
        self.dependence.push(Dependence::Prefix);
    }

    fn push(&mut self, p: usize, version: u32) {
        let id = self.token();
        let own = &mut self.naive[p];
        let kind = TokenKind::Sampled;
        let result = self.forest.push_token(own.tree, own.path, numbers(kind, id), version);
        assert_eq!(result.is_ok(), !own.is_finished);
        if !own.is_finished {
            own.tokens.push(NaiveToken { id, kind, version });
        }
    }

    fn give(&mut self, p: usize) {
        let ids = [self.token(), self.token()];
        let own = &mut self.naive[p];
        let result = self.forest.push_given(own.tree, own.path, &ids);
        assert_eq!(result.is_ok(), !own.is_finished);
        if !own.is_finished {
            let version = own.tokens[own.at..].last().map_or(0, |token| token.version);
            own.tokens.extend(ids.map(|id| NaiveToken { id, kind: TokenKind::Given, version }));
        }
    }

    fn fork(&mut self, p: usize, at: usize) {
        let mut own = self.naive[p].clone();
        let at = at % (own.tokens.len() + 2);
        let result = self.forest.fork(own.tree, own.path, at as u32, ForkOrigin::Caller);
        assert_eq!(result.is_ok(), own.prompt_len <= at && at <= own.tokens.len());
        if let Ok(path) = result {
            own.path = path;
            own.at = at;
            own.weight = 1.0;
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
        if own.is_finished || len == own.prompt_len.max(own.at) {
            return;
        }
        // tokens are unique, so whoever has the last one shares the segment that ends with it
        for other in &mut self.naive {
            if other.tokens.get(len - 1).is_some_and(|token| token.id == own.tokens[len - 1].id) {
                other.marks.insert(len);
            }
        }
    }

    fn check(&self) {
        self.forest.check().unwrap();
        for own in &self.naive {
            let tree = self.forest.tree(own.tree).unwrap();
            let path = tree.path(own.path).unwrap();
            assert_eq!(path.at as usize, own.at);
            assert_eq!(path.depth() as usize, own.marks.len());
            assert_eq!(path.depth_at_fork as usize, own.marks.range(..=own.at).count());
            assert_eq!(path.finish.is_some(), own.is_finished);
            assert!((path.weight - own.weight).abs() < f32::EPSILON);
            own.check_own_tokens(tree);
            own.check_sequence(tree);
        }
        for (tree, &dependence) in self.forest.trees().iter().zip(&self.dependence) {
            assert_eq!(tree.dependence, dependence);
        }
    }
}

fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits()
}

impl NaivePath {
    fn check_own_tokens(&self, tree: &Tree) {
        let own = &self.tokens[self.at..];
        assert_eq!(tree.path(self.path).unwrap().own_len() as usize, own.len());
        assert!(tree.own_ids(self.path).eq(own.iter().map(|token| token.id)));
        assert!(tree.own_kinds(self.path).eq(own.iter().map(|token| token.kind)));
        assert!(tree.own_versions(self.path).eq(own.iter().map(|token| token.version)));
        let numbers: Vec<_> = own.iter().map(|token| numbers(token.kind, token.id)).collect();
        let logprobs = tree.own_logprobs(self.path).zip(&numbers);
        let entropies = tree.own_entropies(self.path).zip(&numbers);
        assert!(logprobs.clone().all(|(logprob, token)| same(logprob, token.logprob)));
        assert!(entropies.clone().all(|(entropy, token)| same(entropy, token.entropy)));
        assert_eq!((logprobs.count(), entropies.count()), (own.len(), own.len()));
        let mut marks = self.marks.iter().filter(|&&mark| mark > self.at).map(|&mark| mark as u32);
        assert!(tree.own_marks(self.path).eq(marks.clone()));
        assert_eq!(tree.last_mark(self.path), marks.next_back());
    }

    fn check_sequence(&self, tree: &Tree) {
        let len = self.tokens.len();
        let ids: Vec<u32> = self.tokens.iter().map(|token| token.id).collect();
        assert_eq!(tree.tokens(self.path).unwrap(), ids);
        for start in [0, len / 3, len - 1, len] {
            for end in [start, start + (len - start) / 2, len] {
                let mut out = vec![0u32; end - start];
                tree.copy_tokens(self.path, start as u32, end as u32, &mut out).unwrap();
                assert_eq!(out, ids[start..end]);
            }
        }
        let mut reversed = tree.rev_tokens(self.path);
        for (position, &token) in self.tokens.iter().enumerate().rev() {
            let PathToken { position: place, id, logprob, entropy, is_sampled } =
                reversed.next().unwrap();
            assert_eq!((place as usize, id), (position, token.id));
            assert_eq!(is_sampled, token.kind == TokenKind::Sampled);
            let expected = numbers(token.kind, token.id);
            assert!(same(logprob, expected.logprob) && same(entropy, expected.entropy));
        }
        assert_eq!(reversed.next(), None);
        let starts = self.marks.iter().copied().filter(|&mark| mark < len);
        let starts: BTreeSet<usize> = std::iter::once(self.prompt_len).chain(starts).collect();
        let boundaries = tree.boundaries(self.path).unwrap();
        assert!(boundaries.iter().map(|&at| at as usize).eq(starts));
    }
}

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
    fn broken_columns_are_refused_or_describe_a_forest(
        ops in prop::collection::vec(op(), 0..30),
        column in 0usize..12,
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

    #[test]
    fn no_columns_whatsoever_panic(
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
        10 => put(&mut columns.tree_dependence, place, value as u8),
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

#[test]
fn unknown_trees_and_paths_are_errors_or_empty() {
    let mut forest = Forest::new();
    let tree = forest.add_tree(0, 0, &[1, 2]).unwrap();
    let (path, nowhere) = (PathId(1), TreeId(1));
    assert!(forest.path(tree, path).is_err() && forest.path(nowhere, PathId(0)).is_err());
    assert!(forest.set_weight(tree, path, 1.0).is_err());
    assert!(forest.set_weight(tree, PathId(0), f32::NAN).is_err());
    assert!(forest.set_dependence(nowhere, Dependence::SampledToken).is_err());
    assert!(forest.reserve_tree(nowhere, 1, 1, 1).is_err());
    assert!(forest.reserve_tree(tree, usize::MAX, usize::MAX, usize::MAX).is_err());
    let own = forest.tree(tree).unwrap();
    assert!(own.path(path).is_err() && own.tokens(path).is_err() && own.boundaries(path).is_err());
    assert!(own.copy_tokens::<u32>(path, 0, 0, &mut []).is_err());
    for (start, end, len) in [(0, 3, 3), (1, 0, 0), (0, 2, 1), (0, u32::MAX, 2)] {
        let mut out = vec![0u32; len];
        assert!(own.copy_tokens(PathId(0), start, end, &mut out).is_err(), "{start}..{end}");
    }
    let path = PathId(u32::MAX);
    assert_eq!(own.own_ids(path).count() + own.own_logprobs(path).count(), 0);
    assert_eq!(own.own_entropies(path).count() + own.own_kinds(path).count(), 0);
    assert_eq!(own.own_marks(path).count() + own.own_versions(path).count(), 0);
    assert_eq!((own.rev_tokens(path).count(), own.last_mark(path)), (0, None));
}
