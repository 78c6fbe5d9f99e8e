//! T1 and the shape of paths: lengths, depths, segment ends.

use super::Replay;
use crate::error::Result;
use crate::forest::{FinishReason, TokenKind};

impl Replay<'_> {
    /// The longest that a path may be.
    pub(super) fn max_len(&self) -> u32 {
        let config = self.config;
        let by_depth = config.segment_len * config.max_depth;
        let completion = by_depth.min(config.max_completion_len.unwrap_or(by_depth));
        (self.tree.prompt_len + completion).min(config.max_model_len)
    }

    /// Where the path's own tokens that were sampled begin.
    pub(super) fn base(&self, p: usize) -> u32 {
        self.path(p).at.max(self.tree.prompt_len)
    }

    /// Where a segment ends that begins or goes on here. Segments are aligned in a tree: a path that
    /// left another one within a segment ends it where that one would have.
    pub(super) fn next_end(&self, start: u32) -> u32 {
        let (prompt_len, segment_len) = (self.tree.prompt_len, self.config.segment_len);
        prompt_len + ((start - prompt_len) / segment_len + 1) * segment_len
    }

    /// T1: no path is empty, too long or too deep, and its segments are as long as they should be.
    pub(super) fn check_limits(&self) -> Result<()> {
        let segment_len = self.config.segment_len;
        for (p, path) in self.tree.paths.iter().enumerate() {
            let (base, len) = (self.base(p), path.len());
            self.law(len > base, "T2", &format!("path {p} has no token"))?;
            let sampled = &path.tokens[self.tree.prompt_len as usize..];
            let all_sampled = sampled.iter().all(|token| token.kind == Some(TokenKind::Sampled));
            self.law(all_sampled, "T3", &format!("path {p}: token kinds"))?;
            let fits = len <= self.max_len() && path.depth(len) <= self.config.max_depth;
            self.law(fits, "T1", &format!("path {p} is too long"))?;
            let mut ends: Vec<u32> =
                (self.next_end(base)..len).step_by(segment_len as usize).collect();
            let is_cut = path.finish == Some(FinishReason::Pruned) && path.own_marks == ends;
            ends.push(len);
            let fits = is_cut || path.own_marks == ends;
            let what = format!("path {p}: segments end at {:?}, not {ends:?}", path.own_marks);
            self.law(fits, "T1", &what)?;
        }
        Ok(())
    }

    /// Where the path's segment that starts here ends.
    pub(super) fn segment_end(&self, p: usize, start: u32) -> Result<u32> {
        let path = self.path(p);
        let own = path.own_marks.iter().copied().find(|&mark| mark > start);
        let end = own.unwrap_or(path.len());
        let what = format!("path {p}: segment {start}..{end}");
        self.law(end > start && end <= self.next_end(start), "T1", &what)?;
        Ok(end)
    }
}
