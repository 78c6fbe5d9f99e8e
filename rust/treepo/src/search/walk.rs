//! A path's completion from its end backwards, across its ancestors. Every rule that looks at
//! tokens reads them here.

use crate::forest::{PathToken, Tree};
use crate::ids::PathId;

/// The completion of `path`, newest token first. O(1) a token and O(ancestors) beyond that over the
/// whole walk; nothing is allocated.
pub(super) fn backwards(tree: &Tree, path: PathId) -> impl Iterator<Item = PathToken> + Clone + '_ {
    tree.rev_tokens(path).take(completion_len(tree, path) as usize)
}

/// Tokens of the completion of `path`.
pub(super) fn completion_len(tree: &Tree, path: PathId) -> u32 {
    tree.own(path).len().saturating_sub(tree.prompt_len)
}

/// Trees for tests, with a flat copy of every path beside them.
#[cfg(test)]
pub(super) mod fixture {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::forest::{FinishReason, Forest, ForkOrigin, SampledToken};
    use crate::ids::TreeId;

    const TREE: TreeId = TreeId(0);

    /// A token of the flat copy; one that was not sampled has no numbers.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub(in super::super) struct Flat {
        pub(in super::super) id: u32,
        pub(in super::super) sampled: Option<(f32, f32)>,
    }

    #[derive(Debug, Clone)]
    pub(in super::super) struct Model {
        forest: Forest,
        prompt_len: usize,
        rows: Vec<Vec<Flat>>,
    }

    impl Model {
        pub(in super::super) fn new(key: u64, prompt: &[u32]) -> Self {
            let mut forest = Forest::new();
            forest.add_tree(1, key, prompt).unwrap();
            let flat = prompt.iter().map(|&id| Flat { id, sampled: None });
            Self { forest, prompt_len: prompt.len(), rows: vec![flat.collect()] }
        }

        pub(in super::super) fn tree(&self) -> &Tree {
            &self.forest.trees()[0]
        }

        pub(in super::super) fn paths(&self) -> impl Iterator<Item = PathId> + use<> {
            (0..self.rows.len() as u32).map(PathId)
        }

        /// The path's completion.
        pub(in super::super) fn completion(&self, path: PathId) -> &[Flat] {
            &self.rows[path.index()][self.prompt_len..]
        }

        pub(in super::super) fn is_live(&self, path: PathId) -> bool {
            self.tree().own(path).finish.is_none()
        }

        pub(in super::super) fn push(&mut self, path: PathId, id: u32, logprob: f32, entropy: f32) {
            let token = SampledToken { id, logprob, entropy };
            self.forest.push_token(TREE, path, token, 0).unwrap();
            self.rows[path.index()].push(Flat { id, sampled: Some((logprob, entropy)) });
        }

        pub(in super::super) fn give(&mut self, path: PathId, ids: &[u32]) {
            self.forest.push_given(TREE, path, ids).unwrap();
            self.rows[path.index()].extend(ids.iter().map(|&id| Flat { id, sampled: None }));
        }

        pub(in super::super) fn mark(&mut self, path: PathId) {
            self.forest.mark(TREE, path).unwrap();
        }

        pub(in super::super) fn fork(&mut self, path: PathId, at: u32) -> PathId {
            let row = self.rows[path.index()][..at as usize].to_vec();
            self.rows.push(row);
            self.forest.fork(TREE, path, at, ForkOrigin::Caller).unwrap()
        }

        pub(in super::super) fn finish(&mut self, path: PathId, reason: FinishReason) {
            self.forest.finish(TREE, path, reason).unwrap();
        }
    }

    #[derive(Debug, Clone)]
    pub(in super::super) enum Op {
        /// Token ids with quarters of minus a log-probability, so that sums are exact and tie.
        Push(Index, Vec<(u32, u8)>),
        Give(Index, Vec<u32>),
        Mark(Index),
        Fork(Index, Index),
        Finish(Index, FinishReason),
    }

    impl Model {
        pub(in super::super) fn apply(&mut self, op: &Op) {
            let n = self.rows.len();
            let path = |index: &Index| PathId(index.index(n) as u32);
            match op {
                Op::Fork(which, at) => {
                    let len = self.tree().own(path(which)).len();
                    let room = len as usize - self.prompt_len + 1;
                    self.fork(path(which), (self.prompt_len + at.index(room)) as u32);
                }
                Op::Push(which, tokens) if self.is_live(path(which)) => {
                    for &(id, quarters) in tokens {
                        let logprob = -f32::from(quarters) / 4.0;
                        self.push(path(which), id, logprob, f32::from(quarters % 5) / 2.0);
                    }
                }
                Op::Give(which, ids) if self.is_live(path(which)) => self.give(path(which), ids),
                Op::Mark(which) if self.is_live(path(which)) => self.mark(path(which)),
                Op::Finish(which, reason) if self.is_live(path(which)) => {
                    self.finish(path(which), *reason);
                }
                _ => {}
            }
        }
    }

    fn op(num_ids: u32) -> impl Strategy<Value = Op> {
        use FinishReason::{Abort, Depth, Length, Pruned, Repetition, Stop};
        let reason =
            prop::sample::select(vec![Stop, Stop, Length, Depth, Repetition, Pruned, Abort]);
        let tokens = prop::collection::vec((0..num_ids, 0u8..20), 1..7);
        prop_oneof![
            6 => (any::<Index>(), tokens).prop_map(|(path, tokens)| Op::Push(path, tokens)),
            1 => (any::<Index>(), prop::collection::vec(0..num_ids, 1..4))
                .prop_map(|(path, ids)| Op::Give(path, ids)),
            3 => any::<Index>().prop_map(Op::Mark),
            3 => (any::<Index>(), any::<Index>()).prop_map(|(path, at)| Op::Fork(path, at)),
            1 => (any::<Index>(), reason).prop_map(|(path, reason)| Op::Finish(path, reason)),
        ]
    }

    /// Calls that grow a tree, over the token ids `0..num_ids`.
    pub(in super::super) fn ops(num_ids: u32) -> impl Strategy<Value = Vec<Op>> {
        prop::collection::vec(op(num_ids), 0..40)
    }

    /// Any tree, over the token ids `0..num_ids`.
    pub(in super::super) fn model(num_ids: u32) -> impl Strategy<Value = Model> {
        let prompt = prop::collection::vec(0..num_ids, 1..5);
        (any::<u64>(), prompt, ops(num_ids)).prop_map(|(key, prompt, ops)| {
            let mut model = Model::new(key, &prompt);
            for op in &ops {
                model.apply(op);
            }
            model
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fixture::{Flat, model};
    use super::*;

    proptest! {
        #[test]
        fn a_walk_reads_the_completion_backwards(model in model(9)) {
            let tree = model.tree();
            for path in model.paths() {
                let walked: Vec<(u32, Flat)> = backwards(tree, path)
                    .map(|token| {
                        let sampled =
                            token.is_sampled.then_some((token.logprob, token.entropy));
                        (token.position, Flat { id: token.id, sampled })
                    })
                    .collect();
                let expected: Vec<(u32, Flat)> =
                    (tree.prompt_len..).zip(model.completion(path).iter().copied()).collect();
                prop_assert!(walked.iter().eq(expected.iter().rev()));
            }
        }
    }
}
