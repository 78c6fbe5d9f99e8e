//! Root mean square layer normalisation.

use std::ops::Range;

use super::{Output, Rows, nanos_of_bytes, spread};
use crate::element::Element;
use crate::simd::{Kernel, Level, Simd, run};
use crate::team::Team;

/// y = x / sqrt(mean(x^2) + eps) * (offset + weight), for each row
/// (Zhang and Sennrich, arXiv:1910.07467).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Elements of a row.
    pub width: usize,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Added to the weight: 0, or 1 for models that store the weight's distance from 1.
    pub offset: f32,
}

/// Normalises rows.
///
/// # Safety
/// `input` holds `num_rows` rows of `width` elements, `weight` holds `width` elements and `output`
/// has room for `num_rows * width`; no other thread writes them meanwhile. `output` may be the
/// input where that is contiguous, and overlaps it in no other way.
pub unsafe fn rms_norm<T: Element>(
    team: &Team,
    level: Level,
    num_rows: usize,
    norm: &RmsNorm,
    input: Rows<T>,
    weight: *const T,
    output: *mut T,
) {
    let nanos = nanos_of_bytes(2 * norm.width * size_of::<T>());
    let (weight, output) = (Rows { data: weight, stride: 0 }, Output(output));
    spread(team, num_rows, nanos, |rows| {
        run(level, NormRows { norm, rows, input, weight, output });
    });
}

/// Normalises the heads of tokens in place; a token's heads stand side by side.
///
/// # Safety
/// As [`rms_norm`] for `counts[0]` tokens of `counts[1]` heads, `stride` elements from token to token,
/// at least as many as the heads of a token have.
pub unsafe fn rms_norm_heads<T: Element>(
    team: &Team,
    level: Level,
    counts: [usize; 2],
    stride: usize,
    norm: &RmsNorm,
    weight: *const T,
    data: *mut T,
) {
    let [num_tokens, num_heads] = counts;
    let nanos = nanos_of_bytes(2 * num_heads * norm.width * size_of::<T>());
    let (weight, data) = (Rows { data: weight, stride: 0 }, Output(data));
    spread(team, num_tokens, nanos, |tokens| {
        for token in tokens {
            let output = Output(data.pointer().wrapping_add(token * stride));
            let input = Rows { data: output.pointer().cast_const(), stride: norm.width };
            run(level, NormRows { norm, rows: 0..num_heads, input, weight, output });
        }
    });
}

struct NormRows<'a, T> {
    norm: &'a RmsNorm,
    rows: Range<usize>,
    input: Rows<T>,
    weight: Rows<T>,
    output: Output<T>,
}

impl<T: Element> Kernel for NormRows<'_, T> {
    type Output = ();

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for row in self.rows {
            unsafe {
                let input = self.input.data.add(row * self.input.stride);
                let output = self.output.pointer().add(row * self.norm.width);
                norm_row::<S, T>(self.norm, input, self.weight.data, output);
            }
        }
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn norm_row<S: Simd, T: Element>(
    norm: &RmsNorm,
    input: *const T,
    weight: *const T,
    output: *mut T,
) {
    unsafe {
        // In double precision, as an error here would be the whole row's.
        let mean = f64::from(sum_of_squares::<S, T>(input, norm.width)) / norm.width as f64;
        let scale = S::splat((1.0 / (mean + f64::from(norm.eps)).sqrt()) as f32);
        let offset = S::splat(norm.offset);
        for at in (0..norm.width).step_by(S::LANES) {
            let count = S::LANES.min(norm.width - at);
            let x = S::mul(T::load_first::<S>(input.add(at), count), scale);
            let factor = S::add(T::load_first::<S>(weight.add(at), count), offset);
            T::store_first::<S>(output.add(at), count, S::mul(x, factor));
        }
    }
}

/// Vectors in flight, as a product takes several cycles.
const NUM_SUMS: usize = 4;

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn sum_of_squares<S: Simd, T: Element>(input: *const T, width: usize) -> f32 {
    unsafe {
        let mut sums = [S::splat(0.0); NUM_SUMS];
        let mut at = 0;
        while at + NUM_SUMS * S::LANES <= width {
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = T::load::<S>(input.add(at + i * S::LANES));
                *sum = S::mul_add(x, x, *sum);
            }
            at += NUM_SUMS * S::LANES;
        }
        while at < width {
            let x = T::load_first::<S>(input.add(at), S::LANES.min(width - at));
            sums[0] = S::mul_add(x, x, sums[0]);
            at += S::LANES;
        }
        S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    }
}
