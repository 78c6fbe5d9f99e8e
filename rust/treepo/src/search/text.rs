//! The bytes of every token, so that rules about text need no tokenizer.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The bytes of every token id, in one buffer.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct TokenTexts {
    bytes: Vec<u8>,
    /// Where each token's bytes begin, and the end of the last ones.
    offsets: Vec<usize>,
}

/// What is read of texts, which may have been altered.
#[derive(Deserialize)]
struct Parts {
    bytes: Vec<u8>,
    offsets: Vec<usize>,
}

impl TryFrom<Parts> for TokenTexts {
    type Error = &'static str;

    fn try_from(Parts { bytes, offsets }: Parts) -> Result<Self, Self::Error> {
        let ends = (offsets.first().copied(), offsets.last().copied());
        let is_empty = offsets.is_empty() && bytes.is_empty();
        let fits = offsets.is_sorted() && ends == (Some(0), Some(bytes.len()));
        if fits || is_empty { Ok(Self { bytes, offsets }) } else { Err("the texts of the tokens") }
    }
}

impl TokenTexts {
    /// Texts of the token ids `0, 1, ..`, in order. A piece may be empty (special tokens) and need
    /// not be valid UTF-8: byte-level tokens may hold a part of a character. O(bytes).
    pub fn new(pieces: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let (mut bytes, mut offsets) = (Vec::new(), vec![0]);
        for piece in pieces {
            bytes.extend_from_slice(piece.as_ref());
            offsets.push(bytes.len());
        }
        Self { bytes, offsets }
    }

    /// The bytes of a token; none for an id without a text. O(1).
    #[inline]
    pub fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.offsets.get(id), self.offsets.get(id.saturating_add(1))) {
            (Some(&start), Some(&end)) => &self.bytes[start..end],
            _ => &[],
        }
    }

    /// Number of token ids with a text, empty ones included.
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether no token has a text.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for TokenTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenTexts").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_has_its_bytes_and_unknown_ids_have_none() {
        let texts = TokenTexts::new(["a", "", "\u{e9}\u{e9}"]);
        assert_eq!(texts.len(), 3);
        assert_eq!(texts.get(0), b"a");
        assert_eq!(texts.get(1), b"");
        assert_eq!(texts.get(2), "\u{e9}\u{e9}".as_bytes());
        assert_eq!(texts.get(3), b"");
        assert_eq!(texts.get(u32::MAX), b"");
    }

    #[test]
    fn pieces_need_not_be_utf8() {
        let texts = TokenTexts::new([[0xc3u8].as_slice(), &[0xa9]]);
        assert_eq!([texts.get(0), texts.get(1)].concat(), "\u{e9}".as_bytes());
    }

    #[test]
    fn without_pieces_no_id_has_a_text() {
        for texts in [TokenTexts::default(), TokenTexts::new(Vec::<Vec<u8>>::new())] {
            assert!(texts.is_empty());
            assert_eq!(texts.get(0), b"");
        }
        assert!(!TokenTexts::new([""]).is_empty());
    }
}
