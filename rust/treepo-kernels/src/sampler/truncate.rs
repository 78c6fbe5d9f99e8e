//! Which tokens top-k, top-p and min-p leave.

use super::SamplingParams;
use super::passes::MAX_LANES;
use super::row::{Distribution, Scratch};
use super::select::{Collect, Keep, Side, Weigh};
use crate::element::Element;
use crate::simd::{Level, run};

/// Rounding of the masses moves a bound on d by less.
const SLACK: f32 = 0.01;

impl<T: Element> Distribution<T> {
    /// What may be drawn: top-k, then top-p on what top-k leaves, then min-p; a token that ties
    /// with the last one kept is kept too. Greedy sampling is not truncated.
    pub(super) fn truncated(self, params: &SamplingParams, scratch: &mut Scratch) -> Self {
        if params.temperature == 0.0 {
            return self;
        }
        let relative = f64::from(params.min_p).ln() as f32;
        let lowest = relative.min(0.0).max(self.threshold(params, scratch));
        if lowest == f32::NEG_INFINITY { self } else { self.cut(lowest, scratch) }
    }

    /// The smallest d = (logit - peak) * scale that top-k and top-p leave.
    fn threshold(&self, params: &SamplingParams, scratch: &mut Scratch) -> f32 {
        let top_k = Some(params.top_k).filter(|k| (1..self.row.vocab_size).contains(k));
        let top_p = Some(f64::from(params.top_p)).filter(|p| *p < 1.0);
        let bound = match (top_k, top_p) {
            (None, None) => return f32::NEG_INFINITY,
            (Some(k), _) => self.bound_of_count(k, scratch),
            (None, Some(p)) => self.bound_of_mass(p),
        };
        let mut count = self.collect(bound, scratch);
        let values = &mut scratch.candidates;
        let mut threshold = bound;
        let mut total = self.total;
        if let Some(k) = top_k {
            let (_, last, _) = values[..count].select_nth_unstable_by(k - 1, |x, y| y.total_cmp(x));
            threshold = *last;
            count = k;
            total = weigh(self.level, &values[..k], f32::NEG_INFINITY).from;
        }
        match top_p {
            Some(p) => quantile(self.level, values, count, p * total),
            None => threshold,
        }
    }

    /// A d that at least `count` entries reach: as many chunks have a largest entry that does.
    fn bound_of_count(&self, count: usize, scratch: &mut Scratch) -> f32 {
        let Scratch { chunks, weights, .. } = scratch;
        if count > chunks.len() {
            return f32::NEG_INFINITY;
        }
        weights.clear();
        weights.extend(chunks.iter().map(|chunk| self.chunk_distance(chunk)));
        *weights.select_nth_unstable_by(count - 1, |x, y| y.total_cmp(x)).1
    }

    /// A d above which lies the mass `fraction`: were all others at it, they would not reach the
    /// rest.
    fn bound_of_mass(&self, fraction: f64) -> f32 {
        let rest = (1.0 - fraction) * self.total / self.row.vocab_size as f64;
        (rest.ln() as f32 - SLACK).min(0.0)
    }

    /// Writes each d that reaches the bound to the candidates and returns their number.
    fn collect(&self, bound: f32, scratch: &mut Scratch) -> usize {
        let Scratch { chunks, candidates, .. } = scratch;
        let room = self.row.vocab_size + MAX_LANES;
        if candidates.len() < room {
            candidates.resize(room, 0.0);
        }
        let collect = Collect { row: self.row, peak: self.peak, bound, chunks, to: candidates };
        run(self.level, collect)
    }
}

fn weigh(level: Level, values: &[f32], bound: f32) -> super::select::Mass {
    run(level, Weigh { values, bound })
}

/// The largest value v such that the values from v on have the mass `target`, where a value d has
/// the mass e^d; the smallest value if all have less.
///
/// A quickselect by mass: changes the values, sorts nothing, and takes time in proportion to their
/// number. Behind the first `count` there is room for a vector.
fn quantile(level: Level, values: &mut [f32], mut count: usize, target: f64) -> f32 {
    let mut target = target.max(f64::MIN_POSITIVE);
    loop {
        let pivot = median_of_some(&values[..count]);
        let mass = weigh(level, &values[..count], pivot);
        let side = if mass.above >= target {
            Side::Above(pivot)
        } else if mass.from >= target {
            return pivot;
        } else {
            target -= mass.from;
            Side::Below(pivot)
        };
        count = run(level, Keep { values, count, side });
        if count == 0 {
            return pivot;
        }
    }
}

/// The median of nine values at even distances.
fn median_of_some(values: &[f32]) -> f32 {
    const NUM: usize = 9;
    let mut some: [f32; NUM] =
        std::array::from_fn(|i| values[(2 * i + 1) * values.len() / (2 * NUM)]);
    some.sort_unstable_by(f32::total_cmp);
    some[NUM / 2]
}
