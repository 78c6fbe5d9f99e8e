//! A forest and plain token vectors that grow by the same random operations.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use treepo::{
    Dependence, FinishReason, Forest, ForkOrigin, PathId, PathToken, SampledToken, TokenKind, Tree,
    TreeId,
};

#[derive(Debug, Clone)]
pub enum Op {
    AddTree(usize),
    Push(usize, u32),
    Given(usize),
    Fork(usize, usize),
    Mark(usize),
    Finish(usize),
    Weigh(usize, f32),
    Depend(usize, Dependence),
}

pub fn op() -> impl Strategy<Value = Op> {
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
pub struct Pair {
    pub forest: Forest,
    naive: Vec<NaivePath>,
    dependence: Vec<Dependence>,
    next_token: u32,
}

impl Pair {
    pub fn grow(ops: &[Op]) -> Self {
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

    pub fn check(&self) {
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
