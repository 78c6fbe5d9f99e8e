//! What an engine reports of a running path: its tokens, and that it has ended it.

use super::Search;
use super::state::Phase;
use crate::error::{Error, Result};
use crate::forest::{FinishReason, SampledToken};
use crate::ids::{PathId, TreeId};

impl Search {
    /// Appends a whole segment: it ends at its limit or with its last token, an end-of-sequence
    /// token. A caller may also report a segment in several parts. Tokens behind the one that a
    /// stop string, a box or pruning ends the path with are dropped.
    ///
    /// # Errors
    /// As [`Search::push_token`], and `InvalidInput` for no token at all, or tokens behind the
    /// segment's limit or an end of sequence; nothing has changed then.
    pub fn complete_segment(
        &mut self,
        tree: TreeId,
        path: PathId,
        tokens: &[SampledToken],
    ) -> Result<()> {
        let (phase, _) = self.check_report(tree, path, tokens)?;
        if tokens.is_empty() {
            return Err(Error::InvalidInput(format!("path {path} of tree {tree} got no token")));
        }
        self.events.clear(); // `segments` says all that a caller of this function needs
        self.push_while(phase, tree, path, tokens)
    }

    /// Appends the last tokens of a running path, which ends with them by a rule of the engine's own:
    /// a stop string of a server, or its limit. There may be none if the path has others of its own.
    /// The tree stays replayable by whoever ends the same paths. A rule of the search that ends the
    /// path before its last token goes first.
    ///
    /// # Errors
    /// As [`Search::complete_segment`], and `InvalidInput` for a reason other than
    /// [`FinishReason::Stop`] and [`FinishReason::Length`], or a path without a token of its own;
    /// nothing has changed then.
    pub fn complete_path(
        &mut self,
        tree: TreeId,
        path: PathId,
        tokens: &[SampledToken],
        reason: FinishReason,
    ) -> Result<()> {
        let (phase, has_own_tokens) = self.check_report(tree, path, tokens)?;
        let problem = if !matches!(reason, FinishReason::Stop | FinishReason::Length) {
            "ends by stop or length only"
        } else if tokens.is_empty() && !has_own_tokens {
            "has no token of its own to end with"
        } else {
            ""
        };
        if !problem.is_empty() {
            return Err(Error::InvalidInput(format!("path {path} of tree {tree} {problem}")));
        }
        self.events.clear(); // as above
        if let Some((&last, others)) = tokens.split_last() {
            self.push_while(phase, tree, path, others)?;
            if self.trees[tree.index()].path(path).phase != phase {
                return Ok(());
            }
            self.forest.push_token(tree, path, last, self.policy_version)?;
            self.trees[tree.index()].tokens.push();
        }
        self.end_segment(tree, path, Some(reason))
    }

    /// Appends tokens as long as the path's segment runs.
    fn push_while(
        &mut self,
        phase: Phase,
        tree: TreeId,
        path: PathId,
        tokens: &[SampledToken],
    ) -> Result<()> {
        for &token in tokens {
            if self.trees[tree.index()].path(path).phase == phase {
                self.push_token(tree, path, token)?;
            }
        }
        Ok(())
    }

    /// Checks tokens of a running segment. Returns its phase, and whether the path has tokens of its
    /// own already.
    fn check_report(
        &self,
        tree: TreeId,
        path: PathId,
        tokens: &[SampledToken],
    ) -> Result<(Phase, bool)> {
        let own = self.forest.path(tree, path)?;
        let phase = self.trees[tree.index()].path(path).phase;
        let Phase::Runs { segment_end } = phase else {
            let message = format!("path {path} of tree {tree} has no running segment");
            return Err(Error::InvalidInput(message));
        };
        let room = (segment_end - own.len()) as usize;
        let is_eos = |token: &SampledToken| self.config.eos_token_ids.contains(&token.id);
        let len = tokens.iter().position(is_eos).map_or(room, |eos| room.min(eos + 1));
        if tokens.len() > len {
            return Err(Error::InvalidInput(format!(
                "{} tokens for path {path} of tree {tree}, whose segment ends after {len}",
                tokens.len()
            )));
        }
        tokens.iter().try_for_each(|token| token.check(tree, path))?;
        Ok((phase, own.len() > own.at.max(self.forest.tree(tree)?.prompt_len)))
    }
}
