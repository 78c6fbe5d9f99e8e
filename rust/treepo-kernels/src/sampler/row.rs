//! The distribution of one row and draws from it.

use super::passes::{CHUNK, ChunkMasses, ChunkSums, Exponentiate, FillMasses, Row, Scan};
use crate::element::Element;
use crate::simd::{Level, run};

/// Buffers of a thread that outlive a row.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) chunks: Vec<ChunkSums>,
    pub(super) weights: Vec<f32>,
    /// Mass of the chunks up to and with each.
    cumulative: Vec<f64>,
    masses: ChunkMasses,
    /// Entries among which truncation finds its threshold, with room behind them.
    pub(super) candidates: Vec<f32>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            chunks: Vec::new(),
            weights: Vec::new(),
            cumulative: Vec::new(),
            masses: ChunkMasses::new(),
            candidates: Vec::new(),
        }
    }
}

/// A row's softmax at the row's temperature.
#[derive(Debug, Clone, Copy)]
pub(super) struct Distribution<T> {
    pub(super) level: Level,
    pub(super) row: Row<T>,
    /// The largest logit.
    pub(super) peak: f32,
    /// The smallest d = (logit - peak) * scale that may be drawn.
    lowest: f32,
    /// The sum of e^d over the entries that may be drawn.
    pub(super) total: f64,
    log_total: f64,
    /// Of the full vocabulary, in nats.
    pub(super) entropy: f32,
}

impl<T: Element> Distribution<T> {
    /// Reads the row; none if it holds NaN or an infinity.
    ///
    /// # Safety
    /// `row` holds its entries, at least one.
    pub(super) unsafe fn read(level: Level, row: Row<T>, scratch: &mut Scratch) -> Option<Self> {
        let Scratch { chunks, weights, cumulative, .. } = scratch;
        chunks.resize(row.num_chunks(), ChunkSums::default());
        run(level, Scan { row, chunks });
        let peak = chunks.iter().fold(f32::NEG_INFINITY, |peak, chunk| peak.max(chunk.largest));
        weights.clear();
        weights.extend(chunks.iter().map(|chunk| (chunk.largest - peak) * row.scale));
        run(level, Exponentiate { values: weights });
        let (mut total, mut moment) = (0.0, 0.0);
        cumulative.clear();
        for (chunk, weight) in chunks.iter().zip(weights) {
            let (weight, mass) = (f64::from(*weight), f64::from(chunk.mass));
            let distance = f64::from((chunk.largest - peak) * row.scale);
            moment += weight * (f64::from(chunk.moment) + mass * distance);
            total += weight * mass;
            cumulative.push(total);
        }
        let log_total = total.ln();
        let entropy = (log_total - moment / total) as f32;
        let lowest = f32::NEG_INFINITY;
        let full = Self { level, row, peak, lowest, total, log_total, entropy };
        entropy.is_finite().then_some(full)
    }

    /// d of a chunk's largest logit.
    pub(super) fn chunk_distance(&self, chunk: &ChunkSums) -> f32 {
        (chunk.largest - self.peak) * self.row.scale
    }

    /// The distribution of the entries with d >= `lowest`, renormalised; `lowest` is at most 0.
    pub(super) fn cut(self, lowest: f32, scratch: &mut Scratch) -> Self {
        let Scratch { chunks, cumulative, masses, .. } = scratch;
        let mut total = 0.0;
        for (chunk, sum) in cumulative.iter_mut().enumerate() {
            if self.chunk_distance(&chunks[chunk]) >= lowest {
                let fill = FillMasses { row: self.row, chunk, peak: self.peak, lowest, masses };
                let num_groups = run(self.level, fill);
                total += masses.groups[..num_groups].iter().map(|x| f64::from(*x)).sum::<f64>();
            }
            *sum = total;
        }
        Self { lowest, total, log_total: total.ln(), ..self }
    }

    /// d of an entry: its logit's distance below the peak, divided by the temperature.
    fn distance(&self, token_id: usize) -> f32 {
        // SAFETY: as `read`; callers stay below `vocab_size`.
        let logit = unsafe { *self.row.data.add(token_id) };
        (logit.to_f32() - self.peak) * self.row.scale
    }

    /// The log-probability of a token.
    pub(super) fn logprob(&self, token_id: usize) -> f32 {
        assert!(token_id < self.row.vocab_size, "no token {token_id} in the vocabulary");
        (f64::from(self.distance(token_id)) - self.log_total) as f32
    }

    /// The first of the most likely tokens.
    pub(super) fn most_likely(&self, scratch: &Scratch) -> usize {
        let is_peak = |chunk: &ChunkSums| chunk.largest >= self.peak;
        let chunk = scratch.chunks.iter().position(is_peak).unwrap_or(0);
        let (first, count) = self.row.chunk(chunk);
        let token_ids = first..first + count;
        // SAFETY: as `read`; the chunk lies within the row.
        let logit = |i: usize| unsafe { *self.row.data.add(i) }.to_f32();
        token_ids.clone().find(|i| logit(*i) >= self.peak).unwrap_or(first)
    }

    /// The token whose interval of the cumulative mass holds `uniform`.
    pub(super) fn draw(&self, uniform: f64, scratch: &mut Scratch) -> usize {
        let Scratch { cumulative, masses, .. } = scratch;
        let (chunk, within) = find(cumulative, uniform);
        let Self { row, peak, lowest, .. } = *self;
        let fill = FillMasses { row, chunk, peak, lowest, masses };
        let num_groups = run(self.level, fill);
        let mut sums = [0.0; CHUNK];
        let (group, within) = find(accumulate(&masses.groups[..num_groups], &mut sums), within);
        let entries = &masses.entries[group * masses.group..][..masses.group];
        let (entry, _) = find(accumulate(entries, &mut sums), within);
        chunk * CHUNK + group * masses.group + entry
    }
}

/// Running sums.
fn accumulate<'a>(masses: &[f32], sums: &'a mut [f64; CHUNK]) -> &'a [f64] {
    let mut total = 0.0;
    for (sum, mass) in sums.iter_mut().zip(masses) {
        total += f64::from(*mass);
        *sum = total;
    }
    &sums[..masses.len()]
}

/// Finds the entry whose interval of the cumulative mass holds a fraction of the total.
///
/// Returns the entry, which has positive mass, and where within its interval the fraction falls,
/// in [0, 1]. The last sum is positive.
fn find(cumulative: &[f64], fraction: f64) -> (usize, f64) {
    let total = cumulative[cumulative.len() - 1];
    // Below the total, so that there is a sum above it, and the first such entry has mass.
    let target = (fraction * total).min(total.next_down());
    let entry = cumulative.partition_point(|sum| *sum <= target);
    let before = if entry == 0 { 0.0 } else { cumulative[entry - 1] };
    let within = (target - before) / (cumulative[entry] - before);
    (entry, within.clamp(0.0, 1.0))
}
