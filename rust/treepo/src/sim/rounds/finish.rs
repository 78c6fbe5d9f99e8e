//! T5: why each path ended, recomputed on its whole text after every token.

use std::ops::Range;

use super::prune::Look;
use super::text::{find_boxed, find_string, repeats};
use super::{Replay, State};
use crate::error::Result;
use crate::forest::FinishReason;
use crate::search::{Boxed, Repetition};
use crate::sim::caller::Ruling;

/// Why a path ends at a token, and where the text that ends it begins.
#[derive(Debug, Clone, Copy)]
struct Ending {
    reason: FinishReason,
    what: &'static str,
    text_start: Option<usize>,
}

impl Ending {
    fn new(reason: FinishReason, what: &'static str) -> Self {
        Self { reason, what, text_start: None }
    }
}

impl Replay<'_> {
    /// The path goes through this segment as the rules have it: it ends where the first of them
    /// asks for it, for this reason, and nowhere else.
    pub(super) fn check_segment(
        &self,
        p: usize,
        segment: Range<u32>,
        state: &mut State,
    ) -> Result<()> {
        let path = self.path(p);
        for len in segment.start + 1..=segment.end {
            let ends_segment = len == self.next_end(segment.start);
            let is_end = len == path.len();
            let ending = self.ending(p, len, ends_segment);
            let pruned = is_end && path.finish == Some(FinishReason::Pruned);
            let goes_on = ending.is_none() && ends_segment;
            let ruling = if goes_on { self.ruling(p, len) } else { None };
            // A path that both ask to be pruned says nothing of the threshold.
            let by_look = pruned && self.looks_at(p, len) && ruling != Some(Ruling::Prune);
            let expected = ending
                .or(by_look.then(|| Ending::new(FinishReason::Pruned, "confidence_prunes")))
                .or_else(|| self.ruled(ruling, pruned));
            if ending.is_none() && !(pruned && ruling == Some(Ruling::Prune)) {
                self.look(p, len, by_look, state);
            }
            if let Some(Ruling::Continue(score)) = ruling.filter(|_| !by_look) {
                self.look_at_score(p, score, pruned, state);
            }
            let reason = expected.map(|ending| ending.reason);
            let actual = if is_end { path.finish } else { None };
            self.law(
                reason == actual && is_end == reason.is_some(),
                "T5",
                &format!("path {p} at {len} of {}: {actual:?}, not {expected:?}", path.len()),
            )?;
            if let Some(ending) = expected {
                self.tally_ending(p, ending, segment.start, state);
            }
        }
        Ok(())
    }

    /// What a ruling leads to; `pruned` is whether the path is.
    fn ruled(&self, ruling: Option<Ruling>, pruned: bool) -> Option<Ending> {
        match ruling? {
            Ruling::Stop => Some(Ending::new(FinishReason::Stop, "verdict_stops")),
            Ruling::Prune => Some(Ending::new(FinishReason::Pruned, "verdict_prunes")),
            Ruling::Continue(_) if pruned && self.prunes_by_score() => {
                Some(Ending::new(FinishReason::Pruned, "score_prunes"))
            }
            Ruling::Continue(_) => None,
        }
    }

    /// Eos, stop string, boxed, length, depth, repetition, in this order.
    fn ending(&self, p: usize, len: u32, ends_segment: bool) -> Option<Ending> {
        let (config, path) = (self.config, self.path(p));
        let token = path.tokens[len as usize - 1].id;
        if config.eos_token_ids.contains(&token) {
            return Some(Ending::new(FinishReason::Stop, "eos"));
        }
        let text = self.text(p, self.tree.prompt_len..len);
        let string = find_string(&text, &config.stop.strings);
        if string.is_some() {
            let ending = Ending::new(FinishReason::Stop, "stop_strings");
            return Some(Ending { text_start: string, ..ending });
        }
        let boxed = if config.stop.boxed == Boxed::Stops { find_boxed(&text) } else { None };
        if boxed.is_some() {
            let ending = Ending::new(FinishReason::Stop, "boxed");
            return Some(Ending { text_start: boxed, ..ending });
        }
        if len == self.max_len() {
            return Some(Ending::new(FinishReason::Length, "length"));
        }
        // The path's last mark is at its end, so a segment that ends inside counts itself.
        let depth = path.depth(len - 1) + 1;
        if ends_segment && depth >= config.max_depth {
            return Some(Ending::new(FinishReason::Depth, "depth"));
        }
        let repeats = ends_segment && self.repeats(p, len);
        repeats.then(|| Ending::new(FinishReason::Repetition, "repetition"))
    }

    /// The bytes of these tokens of the path's sequence.
    fn text(&self, p: usize, tokens: Range<u32>) -> Vec<u8> {
        let tokens = &self.path(p).tokens[tokens.start as usize..tokens.end as usize];
        tokens.iter().flat_map(|token| self.caller.piece(token.id).to_vec()).collect()
    }

    fn repeats(&self, p: usize, len: u32) -> bool {
        let stop = &self.config.stop;
        let start = self.tree.prompt_len.max(len.saturating_sub(stop.repetition_window));
        let (piece, count) = (stop.repetition_len, stop.repetition_count);
        match stop.repetition {
            Repetition::Ignored => false,
            Repetition::Tokens => repeats(&self.path(p).ids(len)[start as usize..], piece, count),
            Repetition::Bytes => repeats(&self.text(p, start..len), piece, count),
        }
    }

    fn look(&self, p: usize, len: u32, is_pruned: bool, state: &mut State) {
        if let Some(confidence) = self.confidence(p, len) {
            state.looks.push(Look { round: state.round, path: p, confidence, is_pruned });
        }
    }

    fn look_at_score(&self, p: usize, score: f32, is_pruned: bool, state: &mut State) {
        if self.prunes_by_score() {
            let (round, confidence) = (state.round, f64::from(score));
            state.looks.push(Look { round, path: p, confidence, is_pruned });
        }
    }

    fn tally_ending(&self, p: usize, ending: Ending, segment_start: u32, state: &mut State) {
        state.tally.count(ending.what);
        let before = self.text(p, self.tree.prompt_len..segment_start).len();
        let crosses = ending.text_start.is_some_and(|start| start < before);
        let name = format!("{}_across_segments", ending.what);
        state.tally.count_if(crosses, &name);
    }
}
