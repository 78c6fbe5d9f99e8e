//! From scores to weights: the online softmax.

use super::score::Scores;
use crate::math;
use crate::simd::Simd;

/// Keys of a tile that a query sees: those from `from` on, below `end`; not empty.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) from: usize,
    pub(super) end: usize,
}

/// Turns the scores of `N` queries into weights relative to their new maxima and updates maxima and
/// sums; returns the factors that bring what was summed before to the new maxima. The lanes of a
/// query's vectors outside its span get weight 0; vectors that lie outside as a whole stay as they
/// are.
///
/// # Safety
/// As [`super::attend`]; behind [`crate::simd::run`]; `peak` and `total` have `N` elements.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
pub(super) unsafe fn soften<S: Simd, const N: usize>(
    scores: &mut Scores<N>,
    spans: &[Span; N],
    softcap: Option<f32>,
    peak: *mut f32,
    total: *mut f32,
) -> [f32; N] {
    let mut fall = [0.0; 16];
    // SAFETY: the caller's condition; N is at most 8.
    unsafe {
        for n in 0..N {
            let before = *peak.add(n);
            let top = before.max(mask::<S>(scores.0[n].as_mut_ptr(), spans[n], softcap));
            fall[n] = before - top;
            *peak.add(n) = top;
        }
        let x = math::exp::<S>(S::load(fall.as_ptr()));
        S::store(fall.as_mut_ptr(), x);
        for n in 0..N {
            let sum = weigh::<S>(scores.0[n].as_mut_ptr(), spans[n], *peak.add(n));
            *total.add(n) = *total.add(n) * fall[n] + sum;
        }
    }
    let mut factors = [0.0; N];
    factors.copy_from_slice(&fall[..N]);
    factors
}

/// Caps the scores and hides those outside the span; returns the largest.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn mask<S: Simd>(scores: *mut f32, span: Span, softcap: Option<f32>) -> f32 {
    // SAFETY: the caller's condition.
    unsafe {
        let hidden = S::splat(f32::NEG_INFINITY);
        let mut top = hidden;
        for v in span.from / S::LANES..span.end.div_ceil(S::LANES) {
            let first = v * S::LANES;
            let mut x = S::load(scores.add(first));
            if let Some(cap) = softcap {
                x = S::mul(S::splat(cap), math::tanh::<S>(S::div(x, S::splat(cap))));
            }
            if span.end < first + S::LANES {
                x = S::keep_first(x, span.end - first, hidden);
            }
            if span.from > first {
                x = S::keep_first(hidden, span.from - first, x);
            }
            S::store(scores.add(first), x);
            top = S::max(top, x);
        }
        S::largest(top)
    }
}

/// Replaces scores by exp(score - peak); returns their sum.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn weigh<S: Simd>(scores: *mut f32, span: Span, peak: f32) -> f32 {
    // SAFETY: the caller's condition.
    unsafe {
        let mut sum = S::splat(0.0);
        for v in span.from / S::LANES..span.end.div_ceil(S::LANES) {
            let at = scores.add(v * S::LANES);
            let x = math::exp::<S>(S::sub(S::load(at), S::splat(peak)));
            S::store(at, x);
            sum = S::add(sum, x);
        }
        S::sum(sum)
    }
}
