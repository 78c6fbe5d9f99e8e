//! Gated activations.

use std::ops::Range;

use super::{Output, Rows, nanos_of_bytes, spread};
use crate::element::Element;
use crate::math::exp;
use crate::simd::{Kernel, Level, Simd, run};
use crate::team::Team;

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e^-x).
    Silu,
    /// The approximation of [`Activation::Gelu`] by tanh: x / (1 + e^-2u) with
    /// u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel, arXiv:1606.08415).
    GeluTanh,
    /// x times the normal distribution's mass below x.
    Gelu,
}

/// activation(gate) * up, for each element.
///
/// # Safety
/// `gate` and `up` hold `num_rows` rows of `width` elements, `output` has room for
/// `num_rows * width`; no other thread writes them meanwhile. `output` may be one of the inputs
/// where that is contiguous, and overlaps them in no other way.
#[allow(clippy::too_many_arguments, reason = "three buffers and their sizes")]
pub unsafe fn gate<T: Element>(
    team: &Team,
    level: Level,
    num_rows: usize,
    width: usize,
    activation: Activation,
    gate: Rows<T>,
    up: Rows<T>,
    output: *mut T,
) {
    let nanos = nanos_of_bytes(3 * width * size_of::<T>());
    let output = Output(output);
    spread(team, num_rows, nanos, |rows| {
        let rows = GateRows { rows, width, gate, up, output };
        match activation {
            Activation::Silu => run(level, Gated(rows, Silu)),
            Activation::GeluTanh => run(level, Gated(rows, GeluTanh)),
            Activation::Gelu => run(level, Gated(rows, Gelu)),
        }
    });
}

struct GateRows<T> {
    rows: Range<usize>,
    width: usize,
    gate: Rows<T>,
    up: Rows<T>,
    output: Output<T>,
}

struct Gated<T, C>(GateRows<T>, C);

impl<T: Element, C: Curve> Kernel for Gated<T, C> {
    type Output = ();

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let GateRows { rows, width, gate, up, output } = self.0;
        for row in rows {
            unsafe {
                let gate = gate.data.add(row * gate.stride);
                let up = up.data.add(row * up.stride);
                let output = output.pointer().add(row * width);
                for at in (0..width).step_by(S::LANES) {
                    let count = S::LANES.min(width - at);
                    let active = C::apply::<S>(T::load_first::<S>(gate.add(at), count));
                    let factor = T::load_first::<S>(up.add(at), count);
                    T::store_first::<S>(output.add(at), count, S::mul(active, factor));
                }
            }
        }
    }
}

trait Curve {
    /// # Safety
    /// As [`Simd`].
    unsafe fn apply<S: Simd>(x: S::F32) -> S::F32;
}

struct Silu;
struct GeluTanh;
struct Gelu;

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl Curve for Silu {
    #[inline(always)]
    unsafe fn apply<S: Simd>(x: S::F32) -> S::F32 {
        unsafe {
            let power = exp::<S>(S::sub(S::splat(0.0), x));
            S::div(x, S::add(S::splat(1.0), power))
        }
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl Curve for GeluTanh {
    #[inline(always)]
    unsafe fn apply<S: Simd>(x: S::F32) -> S::F32 {
        const SCALE: f32 = -2.0 * 0.797_884_6; // -2 sqrt(2 / pi)
        unsafe {
            let square = S::mul(x, x);
            let factor = S::mul_add(square, S::splat(SCALE * 0.044_715), S::splat(SCALE));
            let power = exp::<S>(S::mul(x, factor));
            S::div(x, S::add(S::splat(1.0), power))
        }
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
impl Curve for Gelu {
    #[inline(always)]
    unsafe fn apply<S: Simd>(x: S::F32) -> S::F32 {
        unsafe {
            let zero = S::splat(0.0);
            let size = S::max(x, S::sub(zero, x));
            // max(x, 0) - |x| * mass beyond |x| loses no digits where x is far below 0.
            let mass = half_erfc::<S>(S::mul(size, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
            S::sub(S::max(x, zero), S::mul(size, mass))
        }
    }
}

/// erfc(z) / 2 for z >= 0, to 1.2e-7 of its value where e^(-z^2) has that precision
/// (Numerical Recipes, `erfcc`).
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn half_erfc<S: Simd>(z: S::F32) -> S::F32 {
    const FACTORS: [f32; 9] = [
        -0.822_152_2,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    unsafe {
        let one = S::splat(1.0);
        let t = S::div(one, S::mul_add(z, S::splat(0.5), one));
        let mut sum = S::splat(0.170_872_77);
        for factor in FACTORS {
            sum = S::mul_add(sum, t, S::splat(factor));
        }
        let power = S::sub(sum, S::mul(z, z));
        S::mul(S::mul(t, S::splat(0.5)), exp::<S>(power))
    }
}
