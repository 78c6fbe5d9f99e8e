//! One task: some units of rows, each with one key head.

use std::ops::Range;

use super::ahead::Ahead;
use super::convert::narrow;
use super::plan::Piece;
use super::pool::Pool;
use super::score::{Queries, Scores, score};
use super::scratch::{Area, MAX_QUERIES, MAX_TOGETHER, Scratch};
use super::soften::{Span, soften};
use super::tile::{Place, Source, Tile, is_f32, open, widen_words, widens_keys};
use super::{Buffers, Layer, Step, TILE, mix};
use crate::element::Element;
use crate::math;
use crate::simd::{Kernel, Simd};

/// The work of a task, as a kernel.
pub(super) struct Items<'a, T> {
    pub(super) step: &'a Step,
    pub(super) layer: &'a Layer<'a>,
    pub(super) buffers: &'a Buffers<T>,
    pub(super) range: Range<usize>,
    pub(super) scratch: &'a mut Scratch,
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl<T: Element> Kernel for Items<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let shape = self.layer.shape;
        let pool = Pool::new(self.step.block_size, shape, self.buffers);
        let area = self.scratch.area(shape);
        let num_kv_heads = shape.num_kv_heads;
        let mut item = self.range.start;
        while item < self.range.end {
            let (unit, first) = (item / num_kv_heads, item % num_kv_heads);
            let pieces = &self.step.pieces[self.step.units[unit].pieces.clone()];
            let num_tokens: usize = pieces.iter().map(|piece| piece.num_tokens).sum();
            let together = (MAX_TOGETHER / (num_tokens * shape.ratio())).max(1);
            let end = num_kv_heads.min(first + together.min(self.range.end - item));
            item += end - first;
            let mut next = None;
            if item < self.range.end {
                let unit = &self.step.units[item / num_kv_heads];
                next = Some((&self.step.pieces[unit.pieces.start], item % num_kv_heads));
            }
            let at_once = (MAX_QUERIES / num_tokens).clamp(1, shape.ratio());
            for head in (0..shape.ratio()).step_by(at_once) {
                let task = Task {
                    step: self.step,
                    layer: self.layer,
                    buffers: self.buffers,
                    pool: &pool,
                    area,
                    pieces,
                    key_heads: first..end,
                    head,
                    num_heads: at_once.min(shape.ratio() - head),
                    next,
                };
                // SAFETY: the condition of `attend`, by `run` at a level that is available.
                unsafe { task.run::<S>() }
            }
        }
    }
}

/// Some key heads of a unit and query heads that read them. Query (key head, piece, token, head) lies
/// behind all queries of what is before it.
struct Task<'a, T> {
    step: &'a Step,
    layer: &'a Layer<'a>,
    buffers: &'a Buffers<T>,
    pool: &'a Pool<T>,
    area: Area,
    pieces: &'a [Piece],
    key_heads: Range<usize>,
    /// The first of the query heads of each.
    head: usize,
    num_heads: usize,
    /// The first piece and the key head of the task that follows.
    next: Option<(&'a Piece, usize)>,
}

/// Pieces that read the same tile.
struct Sharing {
    pieces: Range<usize>,
    /// Positions of the tile that they need.
    count: usize,
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl<T: Element> Task<'_, T> {
    #[inline(always)]
    unsafe fn run<S: Simd>(&self) {
        // SAFETY: the condition of `attend`.
        unsafe {
            self.begin::<S>();
            let mut from = usize::MAX;
            let mut end = 0;
            for piece in self.pieces {
                from = from.min(self.first_seen(piece.position) / TILE * TILE);
                end = end.max(piece.end());
            }
            for position in (from..end).step_by(TILE) {
                self.pass::<S>(position);
            }
            self.finish::<S>();
        }
    }

    /// The first position that a query sees.
    #[inline(always)]
    fn first_seen(&self, position: usize) -> usize {
        self.layer.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Copies the words of the queries and clears their sums.
    #[inline(always)]
    unsafe fn begin<S: Simd>(&self) {
        let (key_words, area) = (self.pool.key_words, self.area);
        let mut query = 0;
        for key_head in self.key_heads.clone() {
            for piece in self.pieces {
                for token in 0..piece.num_tokens {
                    for head in self.heads(key_head) {
                        // SAFETY: token and head exist; there are at most MAX_QUERIES.
                        unsafe {
                            let from = self.buffers.query.at(piece.first_token + token, head);
                            let to = area.query.add(query * key_words);
                            for word in 0..key_words {
                                *to.add(word) = T::word_at(from, word, self.pool.key_dim);
                            }
                            if widens_keys::<S, T>() {
                                let wide = area.wide_query.add(query * key_words * T::PER_WORD);
                                widen_words::<T>(to, key_words, wide);
                            }
                            *area.peak.add(query) = f32::NEG_INFINITY;
                            *area.total.add(query) = 0.0;
                            *area.position.add(query) = piece.position + token;
                        }
                        query += 1;
                    }
                }
            }
        }
        // SAFETY: as above.
        unsafe { self.area.mixed.write_bytes(0, query * self.pool.value_stride) }
    }

    /// The query heads that read a key head.
    #[inline(always)]
    fn heads(&self, key_head: usize) -> Range<usize> {
        let first = key_head * self.layer.shape.ratio() + self.head;
        first..first + self.num_heads
    }

    /// Takes all queries that see the tiles at a position through them.
    #[inline(always)]
    unsafe fn pass<S: Simd>(&self, position: usize) {
        let (mut index, mut query) = (0, 0);
        while index < self.pieces.len() {
            let sharing = self.sharing(index, position);
            let num_queries = self.num_queries(&self.pieces[sharing.pieces.clone()]);
            let place = Place {
                table: &self.step.tables[self.pieces[index].table..],
                head: self.key_heads.start,
                position,
                count: sharing.count,
                num_queries,
            };
            if sharing.count > 0 {
                // SAFETY: the pieces' tables hold the blocks that they need.
                unsafe { self.pass_heads::<S>(place, query, sharing.pieces.end) }
            }
            (index, query) = (sharing.pieces.end, query + num_queries);
        }
    }

    /// Takes neighbouring queries, those of each key head from `query` on, through the tiles of a place;
    /// `end` is the piece behind theirs. One key head after another, so that a block is read as it
    /// lies in memory.
    #[inline(always)]
    unsafe fn pass_heads<S: Simd>(&self, mut place: Place<'_>, query: usize, end: usize) {
        let mut first = query;
        for head in self.key_heads.clone() {
            place.head = head;
            // SAFETY: the pieces' tables hold the blocks that they need.
            unsafe {
                let tile = open::<S, T>(self.pool, place, self.area);
                let ahead = self.ahead::<S>(place, end).unwrap_or(tile.ahead);
                self.attend::<S>(&tile, first..first + place.num_queries, ahead);
            }
            first += self.num_queries(self.pieces);
        }
    }

    /// The keys of the tile that comes after one: of the next key head, those of the piece `end`; where
    /// this task ends, those of the next.
    #[inline(always)]
    unsafe fn ahead<S: Simd>(&self, now: Place<'_>, end: usize) -> Option<Ahead> {
        let place = |piece: &Piece, head, position| Place {
            table: &self.step.tables[piece.table..],
            head,
            position,
            count: piece.end().saturating_sub(position).min(TILE),
            num_queries: 0,
        };
        let first = self.key_heads.start;
        let then = now.position + TILE;
        let next = match (self.pieces.get(end), self.next) {
            _ if now.head + 1 < self.key_heads.end => Place { head: now.head + 1, ..now },
            (Some(piece), _) => place(piece, first, now.position),
            (None, _) if then < self.pieces[0].end() => place(&self.pieces[0], first, then),
            (None, Some((piece, head))) => {
                place(piece, head, self.first_seen(piece.position) / TILE * TILE)
            }
            (None, None) => return None,
        };
        if next.count == 0 {
            return None;
        }
        // SAFETY: the piece's table holds the blocks of its positions.
        Some(unsafe { Ahead::keys::<S, T>(self.pool, next, now.count) })
    }

    #[inline(always)]
    fn num_queries(&self, pieces: &[Piece]) -> usize {
        let mut num_tokens = 0;
        for piece in pieces {
            num_tokens += piece.num_tokens;
        }
        num_tokens * self.num_heads
    }

    /// The pieces from one on that have the whole tile in common, as far as they need it.
    #[inline(always)]
    fn sharing(&self, first: usize, position: usize) -> Sharing {
        let mut needed = self.pieces[first].end().min(position + TILE);
        let mut common = usize::MAX;
        let mut end = first + 1;
        while let Some(piece) = self.pieces.get(end) {
            let shared = common.min(piece.shared * self.step.block_size);
            let both = needed.max(piece.end().min(position + TILE));
            if shared < both {
                break;
            }
            (needed, common) = (both, shared);
            end += 1;
        }
        Sharing { pieces: first..end, count: needed.saturating_sub(position) }
    }

    /// Whether a query sees some of a tile.
    ///
    /// # Safety
    /// The query exists.
    #[inline(always)]
    unsafe fn sees(&self, query: usize, tile: &Tile<T>) -> bool {
        // SAFETY: the caller's condition.
        let position = unsafe { *self.area.position.add(query) };
        position >= tile.position && self.first_seen(position) < tile.position + TILE
    }

    /// Takes those of some neighbouring queries that see a tile through it, as many in registers at
    /// a time as fit. The first of them ask for what comes ahead.
    #[inline(always)]
    unsafe fn attend<S: Simd>(&self, tile: &Tile<T>, queries: Range<usize>, ahead: Ahead) {
        let widest = if S::LANES == 16 { 6 } else { 3 };
        let mut first = queries.start;
        let mut ahead = Some([tile.ahead, ahead]);
        // SAFETY: the caller's condition.
        unsafe {
            while first < queries.end {
                let mut count = 0;
                while first + count < queries.end && self.sees(first + count, tile) {
                    count += 1;
                }
                let end = first + count;
                while first < end {
                    // As even as can be, so that few are left over.
                    let rest = end - first;
                    let width = rest.div_ceil(rest.div_ceil(widest));
                    let ahead = ahead.take();
                    first += match width {
                        2 if S::LANES < 16 => self.block::<S, 2>(tile, first, ahead),
                        1 | 2 => self.block::<S, 1>(tile, first, ahead),
                        3 => self.block::<S, 3>(tile, first, ahead),
                        4 | 5 if S::LANES == 16 => self.block::<S, 4>(tile, first, ahead),
                        _ if S::LANES == 16 => self.block::<S, 6>(tile, first, ahead),
                        _ => unreachable!(),
                    };
                }
                while first < queries.end && !self.sees(first, tile) {
                    first += 1;
                }
            }
        }
    }

    /// Takes `N` neighbouring queries through a tile; returns `N`. `ahead`: what to ask for while
    /// scores are computed and while values are summed.
    #[inline(always)]
    unsafe fn block<S: Simd, const N: usize>(
        &self,
        tile: &Tile<T>,
        first: usize,
        ahead: Option<[Ahead; 2]>,
    ) -> usize {
        let area = self.area;
        let [during_scores, during_sums] = [0, 1].map(|i| ahead.map(|ahead| ahead[i]));
        // SAFETY: the queries exist.
        unsafe {
            let spans = self.spans::<N>(tile, first);
            let (mut from, mut end) = (TILE, 0);
            for span in &spans {
                (from, end) = (from.min(span.from), end.max(span.end));
            }
            let vectors = from / S::LANES..end.div_ceil(S::LANES);
            let mut scores = Scores([[0.0; TILE]; N]);
            let key_words = self.pool.key_words;
            let scaling = self.layer.scaling;
            match &tile.keys {
                Source::Pool(keys) => {
                    let words = area.query.add(first * key_words).cast_const();
                    let queries = Queries { words, key_words, scaling };
                    score::<S, T, N>(keys, queries, vectors, during_scores, &mut scores);
                }
                Source::Wide(keys) if widens_keys::<S, T>() => {
                    let key_words = key_words * T::PER_WORD;
                    let words = area.wide_query.add(first * key_words).cast_const();
                    let queries = Queries { words, key_words, scaling };
                    score::<S, f32, N>(keys, queries, vectors, during_scores, &mut scores);
                }
                Source::Wide(_) => unreachable!("words are multiplied as they are"),
            }
            let (peak, total) = (area.peak.add(first), area.total.add(first));
            let softcap = self.layer.softcap;
            let factors = soften::<S, N>(&mut scores, &spans, softcap, peak, total);
            let mixed = area.mixed.add(first * self.pool.value_stride);
            match &tile.values {
                Source::Wide(values) => {
                    mix::mix::<S, f32, N>(values, &scores, &spans, &factors, during_sums, mixed);
                }
                Source::Pool(values) if !is_f32::<T>() => {
                    mix::mix::<S, T, N>(values, &scores, &spans, &factors, during_sums, mixed);
                }
                Source::Pool(_) => unreachable!("f32 is wide"),
            }
        }
        N
    }

    #[inline(always)]
    unsafe fn spans<const N: usize>(&self, tile: &Tile<T>, first: usize) -> [Span; N] {
        let mut spans = [Span { from: 0, end: TILE }; N];
        for (n, span) in spans.iter_mut().enumerate() {
            // SAFETY: the caller's condition.
            let position = unsafe { *self.area.position.add(first + n) };
            span.from = self.first_seen(position).saturating_sub(tile.position);
            span.end = (position + 1 - tile.position).min(TILE);
        }
        spans
    }

    /// Divides the sums by the sums of the weights and writes the output.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self) {
        let shape = self.layer.shape;
        let mut query = 0;
        for key_head in self.key_heads.clone() {
            for piece in self.pieces {
                for token in piece.first_token..piece.first_token + piece.num_tokens {
                    for head in self.heads(key_head) {
                        let at = (token * shape.num_heads + head) * shape.value_dim;
                        // SAFETY: token, head and query exist.
                        unsafe {
                            let factor = self.factor::<S>(query, head);
                            let from = self.area.mixed.add(query * self.pool.value_stride);
                            let to = self.buffers.output.add(at);
                            narrow::<S, T>(from, shape.value_dim, factor, to);
                        }
                        query += 1;
                    }
                }
            }
        }
    }

    /// What a query's sum is multiplied by, its sink taken into account.
    #[inline(always)]
    unsafe fn factor<S: Simd>(&self, query: usize, head: usize) -> f32 {
        // SAFETY: the caller's condition.
        unsafe {
            let (peak, total) = (*self.area.peak.add(query), *self.area.total.add(query));
            let Some(sinks) = self.layer.sinks else {
                return 1.0 / total;
            };
            let top = peak.max(sinks[head]);
            let falls = [peak - top, sinks[head] - top];
            let [fall, sink] = falls.map(|x| S::largest(math::exp::<S>(S::splat(x))));
            fall / (total * fall + sink)
        }
    }
}
