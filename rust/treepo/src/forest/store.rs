//! The token columns of one tree: id, log-probability and entropy of each token, path by path.
//!
//! All paths of a tree grow at once, so the columns are cut into chunks of [`CHUNK`] tokens and a
//! path is a list of chunks. No path has a heap object of its own, and a token costs 12 bytes and
//! half a byte of links. Room grows by a quarter at a time, so that long paths take at most
//! 12.5 * 1.25 < 16 bytes a token with the room that is not used yet.

use std::collections::TryReserveError;

use super::SampledToken;
use super::links::{Links, List};

/// Tokens of a chunk. With 16 a chunk of one column fills one cache line (64 bytes), its links
/// cost half a byte a token, and the open end of a path wastes 96 bytes on average, no more than
/// one and a half times the [`super::Path`] itself.
pub(super) const CHUNK: usize = 16;

/// Chunks that there is room for after the first token, so that a small tree allocates rarely.
const MIN_GROWTH: usize = 16;

/// One path's tokens: its chunks, all full but the last, and their number of tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    chunks: List,
    pub(super) len: u32,
}

impl Span {
    pub(super) const EMPTY: Self = Self { chunks: List::EMPTY, len: 0 };

    fn num_chunks(self) -> usize {
        (self.len as usize).div_ceil(CHUNK)
    }
}

/// The columns, chunk by chunk.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    ids: Vec<[u32; CHUNK]>,
    logprobs: Vec<[f32; CHUNK]>,
    entropies: Vec<[f32; CHUNK]>,
    links: Links,
}

impl Store {
    /// Makes room for exactly `extra` further chunks.
    pub(super) fn reserve(&mut self, extra: usize) -> Result<(), TryReserveError> {
        self.ids.try_reserve_exact(extra)?;
        self.logprobs.try_reserve_exact(extra)?;
        self.entropies.try_reserve_exact(extra)?;
        self.links.reserve(extra)
    }

    /// Bytes of the columns and links, with the room that is not used.
    pub(super) fn bytes(&self) -> usize {
        let num_values = self.ids.capacity() + self.logprobs.capacity() + self.entropies.capacity();
        num_values * CHUNK * size_of::<u32>() + self.links.capacity() * Links::BYTES
    }

    /// The last token of a path. O(1).
    #[inline]
    pub(super) fn last_id(&self, span: Span) -> Option<u32> {
        let offset = span.len.checked_sub(1)? as usize % CHUNK;
        Some(self.ids[span.chunks.last()?][offset])
    }

    /// The first tokens of the path that was the first to get any, before all others.
    pub(super) fn front(&self, len: u32) -> &[u32] {
        &self.ids.as_flattened()[..len as usize]
    }

    /// Appends a token to the path. O(1).
    #[inline]
    pub(super) fn push(&mut self, span: &mut Span, token: SampledToken) {
        let offset = span.len as usize % CHUNK;
        let chunk = match span.chunks.last() {
            Some(last) if offset > 0 => last,
            _ => self.add_chunk(&mut span.chunks),
        };
        self.ids[chunk][offset] = token.id;
        self.logprobs[chunk][offset] = token.logprob;
        self.entropies[chunk][offset] = token.entropy;
        span.len += 1;
    }

    fn add_chunk(&mut self, chunks: &mut List) -> usize {
        if self.ids.len() == self.ids.capacity() {
            // without that much room `push` below tries with less
            self.reserve((self.ids.len() / 4).max(MIN_GROWTH)).unwrap_or_default();
        }
        self.ids.push([0; CHUNK]);
        self.logprobs.push([f32::NAN; CHUNK]);
        self.entropies.push([f32::NAN; CHUNK]);
        self.links.push(chunks)
    }

    /// The chunk that holds the path's token `i`, from the nearer end: O(1) for the last tokens.
    fn chunk_of(&self, span: Span, i: u32) -> Option<usize> {
        let (chunk, num_chunks) = (i as usize / CHUNK, span.num_chunks());
        if num_chunks <= 2 * chunk + 1 {
            self.links.descending(span.chunks).nth(num_chunks.checked_sub(chunk + 1)?)
        } else {
            self.links.ascending(span.chunks).nth(chunk)
        }
    }

    /// Copies the ids of the path's tokens from `first` on to `out`, starting at the nearer end of
    /// the path: O(`out`) for its last tokens.
    pub(super) fn copy_ids<T: From<u32>>(&self, span: Span, first: u32, out: &mut [T]) {
        if out.is_empty() {
            return;
        }
        let first = first as usize;
        let end = first + out.len();
        let mut copy = |nth: usize, chunk: usize| {
            let start = nth * CHUNK;
            let (from, to) = (first.max(start), end.min(start + CHUNK));
            let ids = &self.ids[chunk][from - start..to - start];
            for (slot, &id) in out[from - first..to - first].iter_mut().zip(ids) {
                *slot = T::from(id);
            }
        };
        let (nth_first, nth_last) = (first / CHUNK, (end - 1) / CHUNK);
        let behind = span.num_chunks() - 1 - nth_last;
        if behind <= nth_first {
            let chunks = self.links.descending(span.chunks).skip(behind);
            (nth_first..=nth_last).rev().zip(chunks).for_each(|(nth, chunk)| copy(nth, chunk));
        } else {
            let chunks = self.links.ascending(span.chunks).skip(nth_first);
            (nth_first..=nth_last).zip(chunks).for_each(|(nth, chunk)| copy(nth, chunk));
        }
    }

    /// One column's values of a path, in order.
    fn column<'a, T: Copy>(
        &'a self,
        span: Span,
        column: &'a [[T; CHUNK]],
    ) -> impl Iterator<Item = T> + Clone + 'a {
        let chunks = self.links.ascending(span.chunks).map(|chunk| &column[chunk]);
        chunks.flatten().copied().take(span.len as usize)
    }

    pub(super) fn ids(&self, span: Span) -> impl Iterator<Item = u32> + Clone + '_ {
        self.column(span, &self.ids)
    }

    pub(super) fn logprobs(&self, span: Span) -> impl Iterator<Item = f32> + Clone + '_ {
        self.column(span, &self.logprobs)
    }

    pub(super) fn entropies(&self, span: Span) -> impl Iterator<Item = f32> + Clone + '_ {
        self.column(span, &self.entropies)
    }

    /// A place to read backwards from: that of the path's token `i`.
    pub(super) fn cursor(&self, span: Span, i: u32) -> Option<Cursor> {
        Some(Cursor { chunk: self.chunk_of(span, i)?, offset: i as usize % CHUNK })
    }

    /// The token at a place.
    #[inline]
    pub(super) fn token(&self, place: Cursor) -> SampledToken {
        let Cursor { chunk, offset } = place;
        SampledToken {
            id: self.ids[chunk][offset],
            logprob: self.logprobs[chunk][offset],
            entropy: self.entropies[chunk][offset],
        }
    }

    /// The place of the path's token before that at `place`.
    #[inline]
    pub(super) fn before(&self, place: Cursor) -> Option<Cursor> {
        match place.offset.checked_sub(1) {
            Some(offset) => Some(Cursor { offset, ..place }),
            None => Some(Cursor { chunk: self.links.prev(place.chunk)?, offset: CHUNK - 1 }),
        }
    }

    /// Whether the spans hold each chunk of the store once.
    pub(super) fn is_split_by(&self, spans: impl Iterator<Item = Span>) -> bool {
        let columns = [self.ids.len(), self.logprobs.len(), self.entropies.len()];
        let mut is_seen = vec![false; self.links.len()];
        let mut num_seen = 0;
        for span in spans {
            let chunks = self.links.ascending(span.chunks).take(span.num_chunks() + 1);
            let num_chunks = chunks.map(|chunk| is_seen[chunk] = true).count();
            let num_back = self.links.descending(span.chunks).take(num_chunks + 1).count();
            if num_chunks != span.num_chunks() || num_back != num_chunks {
                return false;
            }
            num_seen += num_chunks;
        }
        columns == [is_seen.len(); 3] && num_seen == is_seen.len() && is_seen.iter().all(|&is| is)
    }
}

/// A token's place in the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    chunk: usize,
    offset: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32) -> SampledToken {
        SampledToken { id, logprob: -(id as f32), entropy: id as f32 }
    }

    /// Two paths that grow in turns.
    fn store(len: u32) -> (Store, [Span; 2]) {
        let mut store = Store::default();
        let mut spans = [Span::EMPTY; 2];
        for i in 0..len {
            store.push(&mut spans[0], token(i));
            store.push(&mut spans[1], token(1000 + i));
        }
        (store, spans)
    }

    #[test]
    fn every_range_is_copied() {
        let (store, spans) = store(70);
        for start in 0..=70 {
            for end in start..=70 {
                let mut out = vec![0; (end - start) as usize];
                store.copy_ids(spans[1], start, &mut out);
                let expected: Vec<u32> = (1000 + start..1000 + end).collect();
                assert_eq!(out, expected);
            }
        }
    }

    #[test]
    fn columns_and_cursors_read_the_tokens_in_both_directions() {
        let (store, spans) = store(50);
        let expected: Vec<SampledToken> = (0..50).map(token).collect();
        let columns = store.ids(spans[0]).zip(store.logprobs(spans[0]));
        let columns = columns.zip(store.entropies(spans[0]));
        let read = columns.map(|((id, logprob), entropy)| SampledToken { id, logprob, entropy });
        assert_eq!(read.collect::<Vec<_>>(), expected);
        for i in 0..50 {
            let mut place = store.cursor(spans[0], i);
            for expected in expected[..=i as usize].iter().rev() {
                assert_eq!(store.token(place.unwrap()), *expected);
                place = store.before(place.unwrap());
            }
            assert!(place.is_none());
        }
        assert!(store.is_split_by(spans.into_iter()));
        assert!(!store.is_split_by(spans.into_iter().take(1)));
        assert!(!store.is_split_by([spans[0]; 2].into_iter()));
    }

    #[test]
    fn a_token_of_a_long_path_takes_less_than_16_bytes() {
        for len in [10_000, 20_000, 31_234] {
            let (store, _) = store(len);
            assert!(store.bytes() <= 16 * 2 * len as usize, "{} for {len}", store.bytes());
        }
    }
}
