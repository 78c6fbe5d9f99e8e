//! Rotary position embedding.

use std::ops::Range;

use super::{Output, Rows, nanos_of_bytes, spread};
use crate::element::Element;
use crate::simd::{Kernel, Level, Simd, run};
use crate::team::Team;

/// Sizes of what is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeShape {
    /// Tokens, each with its own row of cosines and sines.
    pub num_tokens: usize,
    /// Heads of a token.
    pub num_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements of a head that are rotated, from the first on; even.
    pub rotary_dim: usize,
}

/// A tensor [`num_tokens`, `num_heads`, `head_dim`] with contiguous heads.
#[derive(Debug, Clone, Copy)]
pub struct Strided3<T> {
    /// First element.
    pub data: *const T,
    /// Elements from one token's begin to the next one's.
    pub token_stride: usize,
    /// Elements from one head's begin to the next one's.
    pub head_stride: usize,
}

// SAFETY: it is only read, and whoever passes it to a kernel answers for its elements.
unsafe impl<T: Sync> Sync for Strided3<T> {}

/// Rotates the two halves of each head against each other (`NeoX` style, Su et al.,
/// arXiv:2104.09864): with r = `rotary_dim`
///
/// ```text
/// out[d] = x[d] cos[d] - x[d + r/2] sin[d]    for d < r/2
/// out[d] = x[d] cos[d] + x[d - r/2] sin[d]    for r/2 <= d < r
/// out[d] = x[d]                               beyond
/// ```
///
/// `cos` and `sin` are [`num_tokens`, `rotary_dim`], `output` is
/// [`num_tokens`, `num_heads`, `head_dim`], all contiguous.
///
/// # Panics
/// If `rotary_dim` is odd or above `head_dim`.
///
/// # Safety
/// The pointers hold elements of these shapes, `output` overlaps nothing else, and no other thread
/// writes them meanwhile.
pub unsafe fn rope<T: Element, C: Element>(
    team: &Team,
    level: Level,
    shape: RopeShape,
    input: Strided3<T>,
    cos: *const C,
    sin: *const C,
    output: *mut T,
) {
    let parts = [Part { shape, input, output: Output(output) }];
    unsafe { rotate(team, level, parts, cos, sin) }
}

/// Rotates queries and keys in one region: as [`rope`], twice, with the same cosines and sines.
///
/// # Panics
/// If a `rotary_dim` is odd or above its `head_dim`, or if the two shapes differ in `num_tokens` or
/// `rotary_dim`.
///
/// # Safety
/// As [`rope`], for each.
pub unsafe fn rope_pair<T: Element, C: Element>(
    team: &Team,
    level: Level,
    shapes: [RopeShape; 2],
    inputs: [Strided3<T>; 2],
    cos: *const C,
    sin: *const C,
    outputs: [*mut T; 2],
) {
    let part = |i: usize| Part { shape: shapes[i], input: inputs[i], output: Output(outputs[i]) };
    unsafe { rotate(team, level, [part(0), part(1)], cos, sin) }
}

#[derive(Debug, Clone, Copy)]
struct Part<T> {
    shape: RopeShape,
    input: Strided3<T>,
    output: Output<T>,
}

unsafe fn rotate<T: Element, C: Element, const N: usize>(
    team: &Team,
    level: Level,
    parts: [Part<T>; N],
    cos: *const C,
    sin: *const C,
) {
    let RopeShape { num_tokens, rotary_dim, .. } = parts[0].shape;
    for Part { shape, .. } in parts {
        assert!(
            shape.rotary_dim.is_multiple_of(2) && shape.rotary_dim <= shape.head_dim,
            "rotary_dim {} must be even and at most head_dim {}",
            shape.rotary_dim,
            shape.head_dim
        );
        assert!(
            (shape.num_tokens, shape.rotary_dim) == (num_tokens, rotary_dim),
            "queries and keys must have one num_tokens and one rotary_dim"
        );
    }
    let width: usize = parts.iter().map(|part| part.shape.num_heads * part.shape.head_dim).sum();
    let nanos = nanos_of_bytes(2 * width * size_of::<T>());
    let [cos, sin] = [cos, sin].map(|data| Rows { data, stride: rotary_dim });
    spread(team, num_tokens, nanos, |tokens| {
        for part in parts {
            run(level, RotateTokens { part, tokens: tokens.clone(), cos, sin });
        }
    });
}

struct RotateTokens<T, C> {
    part: Part<T>,
    tokens: Range<usize>,
    cos: Rows<C>,
    sin: Rows<C>,
}

impl<T: Element, C: Element> Kernel for RotateTokens<T, C> {
    type Output = ();

    #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Part { shape, input, output } = self.part;
        let half = shape.rotary_dim / 2;
        for token in self.tokens {
            unsafe {
                let cos = self.cos.data.add(token * self.cos.stride);
                let sin = self.sin.data.add(token * self.sin.stride);
                for head in 0..shape.num_heads {
                    let at = token * input.token_stride + head * input.head_stride;
                    let from = input.data.add(at);
                    let head = token * shape.num_heads + head;
                    let to = output.pointer().add(head * shape.head_dim);
                    rotate_head::<S, T, C>(from, cos, sin, half, to);
                    let rest = shape.head_dim - 2 * half;
                    from.add(2 * half).copy_to_nonoverlapping(to.add(2 * half), rest);
                }
            }
        }
    }
}

#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn rotate_head<S: Simd, T: Element, C: Element>(
    from: *const T,
    cos: *const C,
    sin: *const C,
    half: usize,
    to: *mut T,
) {
    for low in (0..half).step_by(S::LANES) {
        let count = S::LANES.min(half - low);
        let high = low + half;
        unsafe {
            let x = T::load_first::<S>(from.add(low), count);
            let y = T::load_first::<S>(from.add(high), count);
            let sin_low = C::load_first::<S>(sin.add(low), count);
            let sin_high = C::load_first::<S>(sin.add(high), count);
            let x_cos = S::mul(x, C::load_first::<S>(cos.add(low), count));
            let y_cos = S::mul(y, C::load_first::<S>(cos.add(high), count));
            let minus_y = S::sub(S::splat(0.0), y);
            T::store_first::<S>(to.add(low), count, S::mul_add(minus_y, sin_low, x_cos));
            T::store_first::<S>(to.add(high), count, S::mul_add(x, sin_high, y_cos));
        }
    }
}
