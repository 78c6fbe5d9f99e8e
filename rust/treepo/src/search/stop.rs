//! When a path becomes a leaf.

use std::iter::Peekable;

use super::repetition::has_repetition;
use super::walk::backwards;
use super::{Boxed, Repetition, SearchConfig, TokenTexts};
use crate::error::{Error, Result};
use crate::forest::{FinishReason, Tree};
use crate::ids::PathId;

/// The rules that end a path, and their buffers.
///
/// Text is that of the completion: what the prompt says ends no path. It is read across tokens,
/// segments and forks, so that no place where a path happens to be cut hides an end.
#[derive(Debug, Clone)]
pub(super) struct StopRules {
    texts: TokenTexts,
    /// Bytes of the longest stop string.
    longest: usize,
    tail: Vec<u8>,
    ids: Vec<u32>,
    bytes: Vec<u8>,
    ranks: Vec<u32>,
}

/// Bytes of a box at most; longer ones end no path, so that a brace without a partner costs no walk
/// over the whole completion.
const MAX_BOX_LEN: usize = 4096;

impl StopRules {
    /// The texts that the rules were made with.
    pub(super) fn texts(&self) -> &TokenTexts {
        &self.texts
    }

    /// # Errors
    /// `InvalidConfig` for a rule about text without texts, an empty stop string, and a repetition
    /// of no items or of fewer than two occurrences.
    pub(super) fn new(config: &SearchConfig, texts: Option<TokenTexts>) -> Result<Self> {
        check(config, texts.is_some())?;
        Ok(Self {
            texts: texts.unwrap_or_default(),
            longest: config.stop.strings.iter().map(String::len).max().unwrap_or(0),
            tail: Vec::new(),
            ids: Vec::new(),
            bytes: Vec::new(),
            ranks: Vec::new(),
        })
    }

    /// The finish reason of `path`, whose newest token has just been sampled, if it ends with it:
    /// the first that holds of an end of sequence, a stop string, a boxed answer, the length limit
    /// (`full`), the depth limit and repetition; the last two only where the segment ends.
    ///
    /// `config` is the one that the rules were made with; `depth` counts the segment that the token
    /// belongs to. Allocates nothing once its buffers have grown.
    pub(super) fn reason(
        &mut self,
        config: &SearchConfig,
        tree: &Tree,
        path: PathId,
        full: bool,
        segment_ends: bool,
        depth: u32,
    ) -> Option<FinishReason> {
        let own = tree.newest_id(path).filter(|_| tree.own(path).len() > tree.prompt_len);
        let newest = own.or_else(|| backwards(tree, path).next().map(|token| token.id))?;
        if config.eos_token_ids.contains(&newest)
            || self.completes_stop_string(&config.stop.strings, tree, path, newest)
            || (config.stop.boxed == Boxed::Stops && self.closes_box(tree, path, newest))
        {
            Some(FinishReason::Stop)
        } else if full {
            Some(FinishReason::Length)
        } else if segment_ends && depth >= config.max_depth {
            Some(FinishReason::Depth)
        } else if segment_ends && self.repeats(config, tree, path) {
            Some(FinishReason::Repetition)
        } else {
            None
        }
    }

    /// Whether a stop string ends within the bytes of the newest token. O(bytes of the longest
    /// string and the token) per string, and nothing unless the token holds a string's last byte.
    fn completes_stop_string(
        &mut self,
        strings: &[String],
        tree: &Tree,
        path: PathId,
        newest: u32,
    ) -> bool {
        let ends_here = |string: &String| {
            string.as_bytes().last().is_some_and(|last| self.texts.get(newest).contains(last))
        };
        if !strings.iter().any(ends_here) {
            return false;
        }
        let num_new = self.texts.get(newest).len();
        self.collect_tail(tree, path, num_new + self.longest - 1);
        let num_old = self.tail.len() - num_new;
        let occurs = |string: &String| {
            // such that the last byte lies within the newest token
            let first = (num_old + 1).saturating_sub(string.len());
            self.tail[first..].windows(string.len()).any(|window| window == string.as_bytes())
        };
        strings.iter().any(occurs)
    }

    /// Writes the last bytes of the completion to `tail`, at most `wanted`.
    fn collect_tail(&mut self, tree: &Tree, path: PathId, wanted: usize) {
        self.tail.clear();
        for token in backwards(tree, path) {
            let room = wanted - self.tail.len();
            self.tail.extend(self.texts.get(token.id).iter().rev().take(room));
            if self.tail.len() == wanted {
                break;
            }
        }
        self.tail.reverse();
    }

    /// Whether a `}` of the newest token closes a `\boxed{`. O(1) without a `}`, else O(bytes back
    /// to the brace that it closes; to the prompt's end if it closes none).
    fn closes_box(&self, tree: &Tree, path: PathId, newest: u32) -> bool {
        let bytes = self.texts.get(newest);
        let older =
            backwards(tree, path).skip(1).flat_map(|token| self.texts.get(token.id).iter().rev());
        let older = older.take(MAX_BOX_LEN);
        let closes = |(i, &byte): (usize, &u8)| {
            byte == b'}' && closes_box(bytes[..i].iter().rev().chain(older.clone()).copied())
        };
        bytes.iter().enumerate().any(closes)
    }

    fn repeats(&mut self, config: &SearchConfig, tree: &Tree, path: PathId) -> bool {
        let stop = &config.stop;
        let (len, count) = (stop.repetition_len as usize, stop.repetition_count as usize);
        let tokens = backwards(tree, path)
            .filter(|token| token.is_sampled)
            .take(stop.repetition_window as usize);
        // backwards, which changes nothing: a piece occurs as often as its reverse in the reverse
        match stop.repetition {
            Repetition::Ignored => false,
            Repetition::Tokens => {
                self.ids.clear();
                self.ids.extend(tokens.map(|token| token.id));
                has_repetition(&self.ids, len, count, &mut self.ranks)
            }
            Repetition::Bytes => {
                self.bytes.clear();
                let texts = &self.texts;
                self.bytes.extend(tokens.flat_map(|token| texts.get(token.id).iter().rev()));
                has_repetition(&self.bytes, len, count, &mut self.ranks)
            }
        }
    }
}

/// Whether a `}` closes a box; `before` is the text before it, backwards. As a box counts `\boxed`,
/// white space or none, and a brace; braces nest, and what an odd number of backslashes precedes is
/// no brace (`treepo.rewards.boxed` reads answers in the same way).
fn closes_box(before: impl Iterator<Item = u8>) -> bool {
    let mut before = before.peekable();
    if is_odd(take_backslashes(&mut before)) {
        return false;
    }
    let mut depth = 1u32;
    while let Some(byte) = before.next() {
        if byte != b'{' && byte != b'}' {
            continue;
        }
        let num_backslashes = take_backslashes(&mut before);
        if is_odd(num_backslashes) {
            continue;
        }
        depth = if byte == b'}' { depth + 1 } else { depth - 1 };
        if depth == 0 {
            return num_backslashes == 0 && ends_with_boxed(&mut before);
        }
    }
    false
}

/// Whether the text before an opening brace ends with a `\boxed` and white space or none.
fn ends_with_boxed(before: &mut Peekable<impl Iterator<Item = u8>>) -> bool {
    while before.next_if(u8::is_ascii_whitespace).is_some() {}
    b"dexob".iter().all(|&byte| before.next_if_eq(&byte).is_some())
        && is_odd(take_backslashes(before))
}

/// Takes the backslashes that come next and counts them.
fn take_backslashes(before: &mut Peekable<impl Iterator<Item = u8>>) -> u32 {
    let mut num_backslashes = 0;
    while before.next_if_eq(&b'\\').is_some() {
        num_backslashes += 1;
    }
    num_backslashes
}

/// Of backslashes: whether the last one escapes what follows.
fn is_odd(num_backslashes: u32) -> bool {
    num_backslashes % 2 == 1
}

fn check(config: &SearchConfig, has_texts: bool) -> Result<()> {
    let stop = &config.stop;
    let invalid =
        |field, message: &str| Err(Error::InvalidConfig { field, message: message.into() });
    let needs_texts = [
        ("stop.strings", !stop.strings.is_empty()),
        ("stop.boxed", stop.boxed != Boxed::Ignored),
        ("stop.repetition", stop.repetition == Repetition::Bytes),
    ];
    if let Some((field, _)) = needs_texts.into_iter().find(|&(_, needs)| needs && !has_texts) {
        return invalid(field, "reads text, which needs the texts of the tokens; pass them");
    }
    if stop.strings.iter().any(String::is_empty) {
        return invalid(
            "stop.strings",
            "has an empty string, which would end every path; remove it",
        );
    }
    if stop.repetition == Repetition::Ignored {
        return Ok(());
    }
    if stop.repetition_len < 1 {
        return invalid("stop.repetition_len", "must be at least 1, got 0");
    }
    if stop.repetition_count < 2 {
        let message = format!("must be at least 2, got {}", stop.repetition_count);
        return invalid("stop.repetition_count", &message);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
