//! Elementary functions on vectors, the same polynomial at every level.

use crate::simd::Simd;

const LOG2_E: f32 = std::f32::consts::LOG2_E;
// ln 2 in two parts, so that x - n * ln 2 is exact to more than single precision.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Below this exp(x) is 0 here; it is below the smallest normal number.
const LOWEST: f32 = -87.336_54;
const HIGHEST: f32 = 88.376_26;

/// A power of two and e^x divided by it, less 1.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn reduce<S: Simd>(x: S::F32) -> (S::F32, S::F32) {
    unsafe {
        // Lanes below the range are moved to a power of two of -127, which is 0. A NaN stays one.
        let x = S::max(S::splat(LOWEST - 1.0), S::min(S::splat(HIGHEST), x));
        let power = S::max(S::round(S::mul(x, S::splat(LOG2_E))), S::splat(-127.0));
        let rest = S::mul_add(power, S::splat(-LN_2_HIGH), x);
        let rest = S::mul_add(power, S::splat(-LN_2_LOW), rest);
        let mut sum = S::splat(1.987_569_1e-4);
        for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            sum = S::mul_add(sum, rest, S::splat(factor));
        }
        let square = S::mul(rest, rest);
        (S::exp2_whole(power), S::mul_add(sum, square, rest))
    }
}

/// e^x, to 2 units in the last place; 0 below -87.33 (minus infinity too), capped above 88.37.
///
/// Range reduction by powers of two and a polynomial of degree 6 (Cephes `expf`).
///
/// # Safety
/// As [`Simd`].
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::F32) -> S::F32 {
    unsafe {
        let (scale, less_one) = reduce::<S>(x);
        S::mul(S::add(less_one, S::splat(1.0)), scale)
    }
}

/// tanh(x), to 3e-7 of its size.
///
/// # Safety
/// As [`Simd`].
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
pub unsafe fn tanh<S: Simd>(x: S::F32) -> S::F32 {
    unsafe {
        // y / (y + 2) with y = e^2x - 1, which is as exact near 0 as elsewhere.
        let (scale, less_one) = reduce::<S>(S::add(x, x));
        let y = S::mul_add(scale, less_one, S::sub(scale, S::splat(1.0)));
        S::div(y, S::add(y, S::splat(2.0)))
    }
}
