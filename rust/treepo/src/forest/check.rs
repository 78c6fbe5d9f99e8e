//! The laws of the forest.

use super::path::{first_fork, next_fork};
use super::{Forest, Path, Tree};
use crate::error::{Result, law};
use crate::ids::PathId;

impl Forest {
    /// Checks the laws of the forest in O(tokens + marks log marks).
    ///
    /// # Errors
    /// `LawBroken` with the first law that does not hold.
    pub fn check(&self) -> Result<()> {
        for (t, tree) in self.trees.iter().enumerate() {
            law(tree.has_prompt(), "T3", || format!("tree {t}: prompt"))?;
            for (p, path) in tree.paths.iter().enumerate() {
                tree.check_path(p, path, &|| format!("tree {t}, path {p}"))?;
            }
            let spans = tree.paths.iter().map(|path| path.span);
            law(tree.store.is_split_by(spans), "T3", || format!("tree {t}: token columns"))?;
            law(tree.has_forks(), "T4", || format!("tree {t}: forks"))?;
        }
        Ok(())
    }
}

impl Tree {
    /// Whether the prompt is the front of path 0.
    fn has_prompt(&self) -> bool {
        self.paths.first().is_some_and(|root| {
            let first_mark = self.own_marks(PathId(0)).next();
            let is_marked = first_mark.is_some_and(|mark| mark <= self.prompt_len);
            root.at == 0 && self.prompt_len > 0 && root.own_len() >= self.prompt_len && !is_marked
        })
    }

    fn check_path(&self, p: usize, path: &Path, place: &dyn Fn() -> String) -> Result<()> {
        let has_marks = self.marks.is_list(path.marks, path.num_marks, path.at, path.len());
        law(has_marks, "T3", || format!("{}: marks", place()))?;
        let has_runs = self.runs.is_list(path.runs, path.own_len());
        law(has_runs, "T3", || format!("{}: kinds and versions", place()))?;
        law(path.parent().is_none() == (p == 0), "T3", || format!("{}: parent", place()))?;
        let Some(parent) = path.parent() else { return Ok(()) };
        law(parent.index() < p, "T3", || format!("{}: parent is younger", place()))?;
        let owner = self.own(parent);
        let owns = owner.at < path.at && path.at <= owner.len();
        law(owns && path.at >= self.prompt_len, "T4", || {
            format!("{}: leaves path {parent} at {}", place(), path.at)
        })?;
        let depth = self.depth_at(parent, path.at);
        law(depth == path.depth_at_fork, "T4", || format!("{}: depth", place()))
    }

    /// Whether each path but the first is once among those that leave its parent, and those that
    /// leave at the parent's end come first.
    fn has_forks(&self) -> bool {
        let mut is_seen = vec![false; self.paths.len()];
        for (p, path) in self.paths.iter().enumerate() {
            let parent = PathId(p as u32);
            let mut is_at_end = true;
            let mut next = first_fork(&self.paths, parent);
            while let Some(fork) = next {
                let own = self.own(fork);
                let leaves_end = own.at == path.len();
                let is_new = !std::mem::replace(&mut is_seen[fork.index()], true);
                if !is_new || own.parent() != Some(parent) || (leaves_end && !is_at_end) {
                    return false;
                }
                is_at_end = leaves_end;
                next = next_fork(&self.paths, fork);
            }
        }
        is_seen.iter().skip(1).all(|&is| is)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::forest::runs::Run;
    use crate::forest::store::Span;
    use crate::forest::{ForkOrigin, SampledToken};

    const TOKEN: SampledToken = SampledToken { id: 7, logprob: -1.0, entropy: 1.0 };

    /// Path 0 with a prompt of two tokens, paths 1 and 3 that leave it, and path 2 below path 1.
    fn forest() -> Forest {
        let mut forest = Forest::new();
        let tree = forest.add_tree(0, 0, &[1, 2]).unwrap();
        for (from, at) in [(None, 2), (Some(0), 3), (Some(1), 23), (Some(0), 22)] {
            let path = from.map_or(PathId(0), |from| {
                forest.fork(tree, PathId(from), at, ForkOrigin::Caller).unwrap()
            });
            for i in 0..20 {
                forest.push_token(tree, path, TOKEN, i / 10).unwrap();
                if i % 5 == 0 {
                    forest.mark(tree, path).unwrap();
                }
            }
        }
        forest.check().unwrap();
        forest
    }

    /// The law that breaks, and how.
    type Breakage = (&'static str, fn(&mut Tree));

    #[test]
    fn each_law_is_checked() {
        let breakages: [Breakage; 14] = [
            ("T3", |tree| tree.prompt_len = 0),
            ("T3", |tree| tree.prompt_len = 23),
            ("T3", |tree| tree.prompt_len = 3),
            ("T3", |tree| tree.paths.clear()),
            ("T3", |tree| tree.paths[1].num_marks += 1),
            ("T3", |tree| tree.push_mark(PathId(1), 4)),
            ("T3", |tree| tree.paths[1].at = 40),
            ("T3", |tree| tree.paths[1].span = tree.paths[2].span),
            ("T3", |tree| tree.store.push(&mut Span::EMPTY.clone(), TOKEN)),
            ("T3", |tree| {
                let run = Run { start: 20, version: 9, is_given: false };
                tree.runs.start(&mut tree.paths[1].runs, run);
            }),
            ("T3", |tree| tree.paths.swap(0, 1)),
            ("T4", |tree| tree.paths[1].at = 2),
            ("T4", |tree| tree.paths[2].depth_at_fork += 1),
            ("T4", |tree| tree.paths[3].forks = tree.paths[1].forks),
        ];
        for (n, (expected, spoil)) in breakages.into_iter().enumerate() {
            let mut forest = forest();
            spoil(&mut forest.trees[0]);
            match forest.check() {
                Err(Error::LawBroken { law, .. }) => assert_eq!(law, expected, "breakage {n}"),
                other => panic!("breakage {n} gives {other:?}"),
            }
        }
    }
}
