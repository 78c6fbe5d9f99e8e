//! The search's rules, derived again from a finished forest without calling the search.
//!
//! A tree is replayed round by round from its marks: who was live, who finished, and whether the
//! forks that follow are those that the rules ask for (laws T1, T2, T5).

use crate::error::{Result, law};
use crate::forest::{FinishReason, Forest, ForkOrigin, Path, Tree};
use crate::ids::PathId;
use crate::search::{FallbackFrom, SearchConfig};

/// Checks every tree of a finished forest that nothing was aborted in.
///
/// # Errors
/// `LawBroken` with the tree, the round and the rule.
pub fn check_rounds(forest: &Forest, config: &SearchConfig) -> Result<()> {
    for (t, tree) in forest.trees().iter().enumerate() {
        let replay = Replay { config, tree, place: format!("tree {t}") };
        replay.check_limits()?;
        replay.check_tree()?;
    }
    Ok(())
}

struct Replay<'a> {
    config: &'a SearchConfig,
    tree: &'a Tree,
    place: String,
}

impl Replay<'_> {
    fn law(&self, holds: bool, law_number: &'static str, what: &str) -> Result<()> {
        law(holds, law_number, || format!("{}: {what}", self.place))
    }

    fn path(&self, p: usize) -> &Path {
        &self.tree.paths()[p]
    }

    /// T1 and T5: lengths, depths and finish reasons.
    fn check_limits(&self) -> Result<()> {
        let (config, prompt_len) = (self.config, self.tree.prompt_len);
        let by_depth = config.segment_len * config.max_depth;
        let completion = by_depth.min(config.max_completion_len.unwrap_or(by_depth));
        let max_len = (prompt_len + completion).min(config.max_model_len);
        for (p, path) in self.tree.paths().iter().enumerate() {
            let is_eos = |token: &u32| config.eos_token_ids.contains(token);
            let prompt = if p == 0 { prompt_len as usize } else { 0 };
            let own = self.tree.own_ids(PathId(p as u32));
            let sampled: Vec<u32> = own.skip(prompt).collect();
            self.law(!sampled.is_empty(), "T2", &format!("path {p} has no token"))?;
            let ended = sampled.iter().position(is_eos).map_or(sampled.len(), |eos| eos + 1);
            self.law(ended == sampled.len(), "T5", &format!("path {p} goes on behind an eos"))?;
            let depth = self.marks_up_to(p, path.len()).len() as u32;
            let expected = if sampled.last().is_some_and(is_eos) {
                FinishReason::Stop
            } else if path.len() == max_len {
                FinishReason::Length
            } else {
                FinishReason::Depth
            };
            let fits = path.len() <= max_len && depth <= config.max_depth;
            self.law(fits, "T1", &format!("path {p} is too long"))?;
            let ends_right = expected != FinishReason::Depth || depth == config.max_depth;
            self.law(
                ends_right && path.finish == Some(expected),
                "T5",
                &format!(
                    "path {p} of length {} and depth {depth} finished as {:?}",
                    path.len(),
                    path.finish
                ),
            )?;
        }
        Ok(())
    }

    /// The segment ends of a path's sequence up to `limit`, ascending.
    fn marks_up_to(&self, p: usize, limit: u32) -> Vec<u32> {
        let path = self.path(p);
        let mut marks = match path.parent() {
            Some(parent) => self.marks_up_to(parent.index(), path.at.min(limit)),
            None => Vec::new(),
        };
        marks.extend(self.tree.own_marks(PathId(p as u32)).filter(|&mark| mark <= limit));
        marks
    }

    /// The path that owns the token at this position of the path's sequence.
    fn owner(&self, p: usize, position: u32) -> usize {
        match self.path(p).parent() {
            Some(parent) if position < self.path(p).at => self.owner(parent.index(), position),
            _ => p,
        }
    }

    /// T2: replays the rounds.
    fn check_tree(&self) -> Result<()> {
        let num_paths = self.tree.paths().len();
        let first = self.config.initial_divergence.min(self.config.width) as usize;
        self.law(num_paths >= first, "T2", "initial divergence")?;
        self.law(self.path(0).origin == ForkOrigin::Root, "T2", "origin of path 0")?;
        self.check_forks(1..first, ForkOrigin::Initial, 0, self.tree.prompt_len)?;
        let mut live: Vec<(usize, u32)> = (0..first).map(|p| (p, self.tree.prompt_len)).collect();
        let (mut known, mut num_leaves) = (first, 0);
        loop {
            let num_run = live.len();
            live = self.end_segments(&live)?;
            let num_finished = num_run - live.len();
            num_leaves += num_finished;
            let missing = (self.config.width as usize).saturating_sub(num_leaves);
            let forks = if !live.is_empty() {
                self.branches(known, &live, num_finished, missing)?
            } else if missing > 0 && self.config.fallback.from != FallbackFrom::Nothing {
                self.fallbacks(known, missing)?
            } else {
                break;
            };
            live.extend((known..known + forks).map(|p| (p, self.path(p).at)));
            known += forks;
        }
        self.law(known == num_paths, "T2", "paths that no round made")?;
        let is_full = num_leaves == self.config.width as usize;
        self.law(
            is_full || self.config.fallback.from == FallbackFrom::Nothing,
            "T2",
            "missing leaves",
        )?;
        self.law(num_leaves <= self.config.width as usize, "T2", "too many leaves")
    }

    /// Ends the segment that starts at each live path's position; returns who lives on.
    fn end_segments(&self, live: &[(usize, u32)]) -> Result<Vec<(usize, u32)>> {
        let mut left = Vec::new();
        for &(p, start) in live {
            let path = self.path(p);
            let mut marks = self.tree.own_marks(PathId(p as u32));
            let end = marks.find(|&mark| mark > start).unwrap_or(0);
            let is_last = end == path.len();
            let len = end.wrapping_sub(start);
            let fits = len == self.config.segment_len || (is_last && len < self.config.segment_len);
            self.law(fits, "T1", &format!("path {p}: segment {start}..{end}"))?;
            if !is_last {
                left.push((p, end));
            }
        }
        Ok(left)
    }

    fn check_forks(
        &self,
        paths: std::ops::Range<usize>,
        origin: ForkOrigin,
        parent: usize,
        at: u32,
    ) -> Result<()> {
        for p in paths {
            let path = self.path(p);
            let fits = path.origin == origin
                && path.parent().is_some_and(|own| own.index() == parent)
                && path.at == at;
            self.law(fits, "T2", &format!("path {p} is no {origin:?} fork of {parent} at {at}"))?;
        }
        Ok(())
    }

    /// `total = max(A, min(W - F, N f + N A))`, split evenly; each fork leaves a segment's end.
    fn branches(
        &self,
        known: usize,
        live: &[(usize, u32)],
        num_finished: usize,
        missing: usize,
    ) -> Result<usize> {
        let factor = self.config.branch_factor as usize;
        let total = live.len().max(missing.min(factor * num_finished + factor * live.len()));
        let num_forks = total - live.len();
        self.law(known + num_forks <= self.tree.paths().len(), "T2", "too few branches")?;
        let mut next = known;
        let (mut least, mut most) = (usize::MAX, 0);
        for &(p, end) in live {
            let is_own = |q: &usize| {
                self.path(*q).at == end
                    && self.path(*q).parent().is_some_and(|own| own.index() == p)
            };
            let count = (next..known + num_forks).take_while(is_own).count();
            self.check_forks(next..next + count, ForkOrigin::Branch, p, end)?;
            next += count;
            (least, most) = (least.min(count), most.max(count));
        }
        self.law(next == known + num_forks, "T2", &format!("fork {next} leaves no live path"))?;
        self.law(most - least <= 1, "T2", &format!("branches split {least} to {most}"))?;
        Ok(num_forks)
    }

    /// Restarts from distinct answered leaves, or from the prompt without one.
    fn fallbacks(&self, known: usize, missing: usize) -> Result<usize> {
        let answered: Vec<usize> =
            (0..known).filter(|&p| self.path(p).finish == Some(FinishReason::Stop)).collect();
        let factor = self.config.branch_factor as usize;
        if answered.is_empty() {
            let num_forks = missing.min(self.config.initial_divergence as usize);
            self.law(known + num_forks <= self.tree.paths().len(), "T2", "too few restarts")?;
            let prompt_len = self.tree.prompt_len;
            self.check_forks(known..known + num_forks, ForkOrigin::Fallback, 0, prompt_len)?;
            return Ok(num_forks);
        }
        let num_forks = missing.min(factor * answered.len());
        self.law(known + num_forks <= self.tree.paths().len(), "T2", "too few restarts")?;
        let mut options = Vec::new();
        for start in (known..known + num_forks).step_by(factor) {
            let group = start..(start + factor).min(known + num_forks);
            let (at, parent) = (self.path(start).at, self.path(start).parent());
            let parent = parent.map_or(usize::MAX, crate::PathId::index);
            self.check_forks(group, ForkOrigin::Fallback, parent, at)?;
            options.push(self.sources(&answered, parent, at));
        }
        self.law(can_match(&options, known), "T2", "restarts from no distinct answered leaves")?;
        Ok(num_forks)
    }

    /// The answered leaves that a restart at `at` of `parent` can come from: `at` is the end of the
    /// prompt or of a segment before the leaf's end.
    fn sources(&self, answered: &[usize], parent: usize, at: u32) -> Vec<usize> {
        let is_source = |&leaf: &usize| {
            let len = self.path(leaf).len();
            let is_boundary =
                at == self.tree.prompt_len || self.marks_up_to(leaf, len).contains(&at);
            is_boundary && at < len && self.owner(leaf, at - 1) == parent
        };
        answered.iter().copied().filter(is_source).collect()
    }
}

/// Whether every group can get a source of its own (Kuhn's algorithm).
fn can_match(options: &[Vec<usize>], num_sources: usize) -> bool {
    fn place(
        group: usize,
        options: &[Vec<usize>],
        taken: &mut [Option<usize>],
        seen: &mut [bool],
    ) -> bool {
        for &source in &options[group] {
            if std::mem::replace(&mut seen[source], true) {
                continue;
            }
            let is_free = taken[source].is_none_or(|other| place(other, options, taken, seen));
            if is_free {
                taken[source] = Some(group);
                return true;
            }
        }
        false
    }
    let mut taken = vec![None; num_sources];
    (0..options.len()).all(|group| place(group, options, &mut taken, &mut vec![false; num_sources]))
}
