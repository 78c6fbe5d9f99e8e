//! What a caller tells the search besides sampled tokens: token texts and verdicts.

use super::mix;
use crate::search::Verdict;

/// A caller's knowledge, as plain data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The bytes of every token id; none for ids behind the end.
    pub pieces: Vec<Vec<u8>>,
    /// Who judges segments, if anybody does.
    pub judge: Option<Judge>,
}

impl Caller {
    /// The bytes of a token.
    pub fn piece(&self, id: u32) -> &[u8] {
        self.pieces.get(id as usize).map_or(&[], Vec::as_slice)
    }

    /// The ruling on a path with these tokens; without a judge all go on.
    pub fn rule(&self, tokens: &[u32]) -> Ruling {
        self.judge.as_ref().map_or(Ruling::Continue(0.0), |judge| judge.rule(tokens))
    }

    /// Steps that the ruling on this path comes late by.
    pub fn delay(&self, tokens: &[u32]) -> u32 {
        self.judge.as_ref().map_or(0, |judge| judge.delay(tokens))
    }
}

/// What a caller says of a path that has ended a segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ruling {
    /// It goes on; the segment has this score in [0, 1).
    Continue(f32),
    /// It is a finished answer.
    Stop,
    /// It is given up.
    Prune,
}

impl From<Ruling> for Verdict {
    fn from(ruling: Ruling) -> Self {
        match ruling {
            Ruling::Continue(score) => Self::Continue { score },
            Ruling::Stop => Self::Stop,
            Ruling::Prune => Self::Prune,
        }
    }
}

/// Judges a path by a hash of its tokens and tells it late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judge {
    /// Makes judges differ.
    pub salt: u64,
    /// Probability of [`Ruling::Stop`], in thousandths.
    pub stop_permille: u32,
    /// Probability of [`Ruling::Prune`], in thousandths.
    pub prune_permille: u32,
    /// Steps at most between a segment's end and its ruling.
    pub max_delay: u32,
}

impl Judge {
    /// The ruling on a path with these tokens, prompt included; a function of nothing else.
    pub fn rule(&self, tokens: &[u32]) -> Ruling {
        let hash = self.hash(tokens);
        let draw = (hash % 1000) as u32;
        if draw < self.stop_permille {
            Ruling::Stop
        } else if draw < self.stop_permille + self.prune_permille {
            Ruling::Prune
        } else {
            Ruling::Continue((hash >> 40) as f32 / (1u64 << 24) as f32)
        }
    }

    /// Steps that the ruling on this path comes late by.
    pub fn delay(&self, tokens: &[u32]) -> u32 {
        (mix(self.hash(tokens), 0xde1a) % (u64::from(self.max_delay) + 1)) as u32
    }

    fn hash(&self, tokens: &[u32]) -> u64 {
        tokens.iter().fold(mix(self.salt, 7), |hash, &token| mix(hash, u64::from(token)))
    }
}
