//! The forest against paths that store their own tokens, and its columns there and back.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use treepo::{FinishReason, Forest, ForkOrigin, PathId, SampledToken, TreeId};

#[derive(Debug, Arbitrary)]
enum Op {
    AddTree(u64, Vec<u32>),
    Fork(u8, u8),
    Push(u8, u32, f32, f32, u8),
    Give(u8, Vec<u32>),
    Mark(u8),
    Finish(u8, u8),
    Weigh(u8, f32),
}

/// What a path must read, and whether it lives.
#[derive(Clone)]
struct ModelPath {
    tree: TreeId,
    path: PathId,
    tokens: Vec<u32>,
    prompt_len: usize,
    is_live: bool,
}

#[derive(Default)]
struct Machine {
    forest: Forest,
    paths: Vec<ModelPath>,
}

impl Machine {
    fn apply(&mut self, op: &Op) {
        if let Op::AddTree(key, prompt) = op {
            let Ok(tree) = self.forest.add_tree(0, *key, prompt) else {
                assert!(prompt.is_empty());
                return;
            };
            let (tokens, prompt_len) = (prompt.clone(), prompt.len());
            self.paths.push(ModelPath { tree, path: PathId(0), tokens, prompt_len, is_live: true });
            return;
        }
        let (Op::Fork(p, _) | Op::Push(p, ..) | Op::Give(p, _) | Op::Mark(p)) = op else {
            return self.end(op);
        };
        let Some(p) = usize::from(*p).checked_rem(self.paths.len()) else { return };
        let ModelPath { tree, path, prompt_len, is_live, .. } = self.paths[p];
        let tokens = &mut self.paths[p].tokens;
        match op {
            Op::Fork(_, at) => {
                let at = prompt_len - 1 + usize::from(*at) % (tokens.len() - prompt_len + 3);
                let forked = self.forest.fork(tree, path, at as u32, ForkOrigin::Caller);
                assert_eq!(forked.is_ok(), (prompt_len..=tokens.len()).contains(&at));
                let Ok(path) = forked else { return };
                let tokens = tokens[..at].to_vec();
                self.paths.push(ModelPath { tree, path, tokens, prompt_len, is_live: true });
            }
            &Op::Push(_, id, logprob, entropy, version) => {
                let token = SampledToken { id, logprob, entropy };
                let pushed = self.forest.push_token(tree, path, token, version.into());
                let is_finite = logprob.is_finite() && entropy.is_finite();
                assert_eq!(pushed.is_ok(), is_live && is_finite);
                tokens.extend(pushed.is_ok().then_some(id));
            }
            Op::Give(_, ids) => {
                assert_eq!(self.forest.push_given(tree, path, ids).is_ok(), is_live);
                tokens.extend(ids.iter().filter(|_| is_live));
            }
            _ => assert_eq!(self.forest.mark(tree, path).is_ok(), is_live),
        }
    }

    fn end(&mut self, op: &Op) {
        let (Op::Finish(p, _) | Op::Weigh(p, _)) = op else { return };
        let Some(p) = usize::from(*p).checked_rem(self.paths.len()) else { return };
        let ModelPath { tree, path, is_live, .. } = self.paths[p];
        match *op {
            Op::Finish(_, reason) => {
                let reason = FinishReason::from_u8(reason).unwrap_or(FinishReason::Stop);
                assert_eq!(self.forest.finish(tree, path, reason).is_ok(), is_live);
                self.paths[p].is_live = false;
            }
            Op::Weigh(_, weight) => {
                let is_valid = weight.is_finite() && weight >= 0.0;
                assert_eq!(self.forest.set_weight(tree, path, weight).is_ok(), is_valid);
            }
            _ => {}
        }
    }

    fn check(&self) {
        self.forest.check().expect("the laws hold");
        for own in &self.paths {
            let tree = self.forest.tree(own.tree).expect("a tree");
            assert_eq!(tree.tokens(own.path).as_ref(), Ok(&own.tokens));
            let backwards = tree.rev_tokens(own.path).map(|token| token.id);
            assert!(backwards.eq(own.tokens.iter().rev().copied()));
        }
    }
}

fuzz_target!(|ops: Vec<Op>| {
    let mut machine = Machine::default();
    ops.iter().for_each(|op| machine.apply(op));
    machine.check();
    let columns = machine.forest.columns();
    let again = Forest::from_columns(&columns).expect("its own columns");
    assert_eq!(format!("{columns:?}"), format!("{:?}", again.columns()));
    assert_eq!(machine.forest.nodes(), again.nodes());
});
