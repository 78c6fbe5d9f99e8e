//! The elementwise kernels against their formulas in f64, at every level and number format.

#![allow(unsafe_code, reason = "the kernels take raw buffers")]

use std::ops::Range;

use proptest::prelude::*;
use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::elementwise::{
    Activation, RmsNorm, RopeShape, Rows, Strided3, gate, rms_norm, rms_norm_heads, rope, rope_pair,
};
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

fn levels() -> Vec<Level> {
    Level::ALL.into_iter().filter(|level| level.is_available()).collect()
}

/// Numbers in `range`, the same for a seed.
fn numbers<T: Element>(count: usize, seed: u64, range: Range<f32>) -> Vec<T> {
    let mut state = seed;
    let next = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = (state >> 40) as f32 / (1 << 24) as f32;
        T::from_f32(range.start + unit * (range.end - range.start))
    };
    (0..count).map(next).collect()
}

fn wide<T: Element>(x: T) -> f64 {
    f64::from(x.to_f32())
}

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|x| x.to_f32().to_bits()).collect()
}

/// Relative error of one rounding to T.
fn rounding<T: Element>() -> f64 {
    if size_of::<T>() == 2 { 1.0 / 256.0 } else { 1.2e-7 }
}

fn check_close<T: Element>(actual: &[T], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len());
    for (i, (x, y)) in actual.iter().zip(expected).enumerate() {
        let error = (wide(*x) - y).abs();
        let allowed = y.abs() * rounding::<T>() + tolerance;
        assert!(error <= allowed, "element {i}: {} instead of {y}", wide(*x));
    }
}

struct NormCase {
    num_rows: usize,
    norm: RmsNorm,
    stride: usize,
}

fn normed<T: Element>(team: &Team, level: Level, case: &NormCase, x: &[T], w: &[T]) -> Vec<T> {
    let mut output = vec![T::ZERO; case.num_rows * case.norm.width];
    let input = Rows { data: x.as_ptr(), stride: case.stride };
    let to = output.as_mut_ptr();
    // SAFETY: the buffers have these sizes.
    unsafe { rms_norm(team, level, case.num_rows, &case.norm, input, w.as_ptr(), to) }
    output
}

fn check_norm<T: Element>(case: &NormCase, seed: u64) {
    let NormCase { num_rows, norm, stride } = *case;
    let x = numbers::<T>(num_rows * stride, seed, -3.0..3.0);
    let w = numbers::<T>(norm.width, seed + 1, -1.0..2.0);
    let mut expected = Vec::new();
    for row in x.chunks_exact(stride) {
        let squares: f64 = row[..norm.width].iter().map(|x| wide(*x) * wide(*x)).sum();
        let scale = (squares / norm.width as f64 + f64::from(norm.eps)).sqrt().recip();
        let factor = |w: &T| scale * (f64::from(norm.offset) + wide(*w));
        expected.extend(row.iter().zip(&w).map(|(x, w)| wide(*x) * factor(w)));
    }
    for level in levels() {
        let actual = normed(&Team::alone(), level, case, &x, &w);
        check_close(&actual, &expected, 1e-5);
    }
}

/// Heads of tokens with a gap behind each token, one after another and in one call.
fn check_heads<T: Element>(team: &Team, counts: [usize; 2], norm: RmsNorm, gap: usize, seed: u64) {
    let ([num_tokens, num_heads], width) = (counts, norm.width);
    let stride = num_heads * width + gap;
    let x = numbers::<T>(num_tokens * stride, seed, -3.0..3.0);
    let w = numbers::<T>(width, seed + 1, -1.0..2.0);
    for level in levels() {
        let mut expected = x.clone();
        for token in expected.chunks_exact_mut(stride) {
            for head in token[..num_heads * width].chunks_exact_mut(width) {
                let case = NormCase { num_rows: 1, norm, stride: width };
                head.copy_from_slice(&normed(&Team::alone(), level, &case, head, &w));
            }
        }
        let mut found = x.clone();
        let (weight, data) = (w.as_ptr(), found.as_mut_ptr());
        // SAFETY: the buffers have these sizes.
        unsafe { rms_norm_heads(team, level, counts, stride, &norm, weight, data) }
        assert_eq!(bits(&found), bits(&expected), "{}", level.name());
    }
}

struct RopeCase {
    shape: RopeShape,
    /// Elements between heads and between tokens that belong to neither.
    gap: usize,
}

impl RopeCase {
    fn strided<T>(&self, x: &[T]) -> Strided3<T> {
        let head_stride = self.shape.head_dim + self.gap;
        let token_stride = self.shape.num_heads * head_stride + self.gap;
        Strided3 { data: x.as_ptr(), token_stride, head_stride }
    }

    fn num_inputs(&self) -> usize {
        let strided = self.strided::<f32>(&[]);
        self.shape.num_tokens * strided.token_stride
    }

    fn num_outputs(&self) -> usize {
        self.shape.num_tokens * self.shape.num_heads * self.shape.head_dim
    }

    fn expected<T: Element, C: Element>(&self, x: &[T], cos: &[C], sin: &[C]) -> Vec<f64> {
        let RopeShape { num_tokens, num_heads, head_dim, rotary_dim } = self.shape;
        let Strided3 { token_stride, head_stride, .. } = self.strided(x);
        let half = rotary_dim / 2;
        let mut expected = Vec::new();
        for (token, head) in (0..num_tokens).flat_map(|t| (0..num_heads).map(move |h| (t, h))) {
            let x = &x[token * token_stride + head * head_stride..][..head_dim];
            for d in 0..head_dim {
                let other = match d {
                    d if d < half => -wide(x[d + half]),
                    d if d < rotary_dim => wide(x[d - half]),
                    _ => 0.0,
                };
                expected.push(if d < rotary_dim {
                    let at = token * rotary_dim + d;
                    wide(x[d]) * wide(cos[at]) + other * wide(sin[at])
                } else {
                    wide(x[d])
                });
            }
        }
        expected
    }

    fn rotated<T: Element, C: Element>(
        &self,
        team: &Team,
        level: Level,
        x: &[T],
        cos: &[C],
        sin: &[C],
    ) -> Vec<T> {
        let mut output = vec![T::ZERO; self.num_outputs()];
        let (input, to) = (self.strided(x), output.as_mut_ptr());
        // SAFETY: the buffers have these sizes.
        unsafe { rope(team, level, self.shape, input, cos.as_ptr(), sin.as_ptr(), to) }
        output
    }
}

fn check_rope<T: Element, C: Element>(case: &RopeCase, seed: u64) {
    let x = numbers::<T>(case.num_inputs(), seed, -3.0..3.0);
    let num_angles = case.shape.num_tokens * case.shape.rotary_dim;
    let cos = numbers::<C>(num_angles, seed + 1, -1.0..1.0);
    let sin = numbers::<C>(num_angles, seed + 2, -1.0..1.0);
    let expected = case.expected(&x, &cos, &sin);
    for level in levels() {
        let actual = case.rotated(&Team::alone(), level, &x, &cos, &sin);
        check_close(&actual, &expected, 1e-6);
    }
}

/// The mass of the normal distribution below x, by Simpson's rule.
fn normal_below(x: f64) -> f64 {
    let (from, num_steps) = (-12.0, 2000);
    let width = (x - from) / f64::from(num_steps);
    let density = |i: i32| (-(from + width * f64::from(i)).powi(2) / 2.0).exp();
    let weight = |i: i32| if i % 2 == 1 { 4.0 } else { 2.0 };
    let inner: f64 = (1..num_steps).map(|i| weight(i) * density(i)).sum();
    (density(0) + inner + density(num_steps)) * width / 3.0 / std::f64::consts::TAU.sqrt()
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::Gelu => x * normal_below(x),
    }
}

const ACTIVATIONS: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

#[derive(Clone, Copy)]
struct GateCase {
    num_rows: usize,
    width: usize,
    gap: usize,
    activation: Activation,
}

fn gated<T: Element>(team: &Team, level: Level, case: GateCase, x: &[T], y: &[T]) -> Vec<T> {
    let GateCase { num_rows, width, gap, activation } = case;
    let mut output = vec![T::ZERO; num_rows * width];
    let [x, y] = [x, y].map(|rows| Rows { data: rows.as_ptr(), stride: width + gap });
    // SAFETY: the buffers have these sizes.
    unsafe { gate(team, level, num_rows, width, activation, x, y, output.as_mut_ptr()) }
    output
}

fn check_gate<T: Element>(case: GateCase, seed: u64) {
    let stride = case.width + case.gap;
    let x = numbers::<T>(case.num_rows * stride, seed, -8.0..8.0);
    let y = numbers::<T>(case.num_rows * stride, seed + 1, -2.0..2.0);
    let is_row = |i: usize| i % stride < case.width;
    let product = |i: usize| activated(case.activation, wide(x[i])) * wide(y[i]);
    let expected: Vec<f64> = (0..x.len()).filter(|i| is_row(*i)).map(product).collect();
    for level in levels() {
        check_close(&gated(&Team::alone(), level, case, &x, &y), &expected, 2e-6);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn rms_norm_is_its_formula(
        num_rows in 0..5_usize,
        width in 1..200_usize,
        gap in 0..5_usize,
        offset in prop::sample::select(vec![0.0_f32, 1.0]),
        seed in any::<u32>(),
    ) {
        let norm = RmsNorm { width, eps: 1e-5, offset };
        let case = NormCase { num_rows, norm, stride: width + gap };
        check_norm::<f32>(&case, u64::from(seed));
        check_norm::<Bf16>(&case, u64::from(seed));
    }

    #[test]
    fn heads_are_normed_each_for_itself_and_nothing_else_is(
        num_tokens in 0..6_usize,
        num_heads in 1..5_usize,
        width in 1..90_usize,
        gap in 0..40_usize,
        offset in prop::sample::select(vec![0.0_f32, 1.0]),
        seed in any::<u32>(),
    ) {
        let norm = RmsNorm { width, eps: 1e-5, offset };
        let (team, counts, seed) = (Team::alone(), [num_tokens, num_heads], u64::from(seed));
        check_heads::<f32>(&team, counts, norm, gap, seed);
        check_heads::<Bf16>(&team, counts, norm, gap, seed);
    }

    #[test]
    fn rope_is_its_formula(
        num_tokens in 0..4_usize,
        num_heads in 1..4_usize,
        half in 0..40_usize,
        rest in 0..9_usize,
        gap in 0..5_usize,
        seed in any::<u32>(),
    ) {
        let (head_dim, rotary_dim) = (2 * half + rest, 2 * half);
        let shape = RopeShape { num_tokens, num_heads, head_dim, rotary_dim };
        let case = RopeCase { shape, gap };
        check_rope::<f32, f32>(&case, u64::from(seed));
        check_rope::<Bf16, f32>(&case, u64::from(seed));
        check_rope::<Bf16, Bf16>(&case, u64::from(seed));
    }

    #[test]
    fn gate_is_its_formula(
        num_rows in 0..4_usize,
        width in 1..100_usize,
        gap in 0..5_usize,
        activation in prop::sample::select(ACTIVATIONS.to_vec()),
        seed in any::<u32>(),
    ) {
        let case = GateCase { num_rows, width, gap, activation };
        check_gate::<f32>(case, u64::from(seed));
        check_gate::<Bf16>(case, u64::from(seed));
    }
}

#[test]
fn activations_stay_finite_far_from_zero() {
    let x = [-1e30_f32, -1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4, 1e30];
    let expected = [0.0, 0.0, 0.0, 0.0, 0.0, 20.0, 100.0, 1e4, 1e30];
    for (level, activation) in levels().into_iter().flat_map(|l| ACTIVATIONS.map(|a| (l, a))) {
        let case = GateCase { num_rows: 1, width: x.len(), gap: 0, activation };
        let actual = gated(&Team::alone(), level, case, &x, &[1.0; 9]);
        check_close(&actual, &expected, 1e-7);
    }
}

#[test]
fn a_nan_of_the_gate_reaches_the_output() {
    for (level, activation) in levels().into_iter().flat_map(|l| ACTIVATIONS.map(|a| (l, a))) {
        let case = GateCase { num_rows: 1, width: 2, gap: 0, activation };
        let actual = gated(&Team::alone(), level, case, &[f32::NAN, 1.0], &[1.0, 1.0]);
        assert!(actual[0].is_nan() && actual[1].is_finite(), "{level:?} {activation:?} {actual:?}");
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_step_and_team() {
    let width = 2083;
    let x = numbers::<f32>(300 * width, 1, -3.0..3.0);
    let y = numbers::<f32>(300 * width, 2, -3.0..3.0);
    let norm = RmsNorm { width, eps: 1e-6, offset: 0.0 };
    let many = NormCase { num_rows: 300, norm, stride: width };
    let gates = GateCase { num_rows: 300, width, gap: 0, activation: Activation::Gelu };
    for level in levels() {
        let normed_rows = bits(&normed(&Team::parked(3), level, &many, &x, &y));
        let gated_rows = bits(&gated(&Team::parked(3), level, gates, &x, &y));
        for row in [0, 7, 150, 299] {
            let at = row * width..(row + 1) * width;
            let one = NormCase { num_rows: 1, norm, stride: width };
            let alone = normed(&Team::alone(), level, &one, &x[at.clone()], &y);
            assert_eq!(bits(&alone), normed_rows[at.clone()]);
            let one = GateCase { num_rows: 1, ..gates };
            let alone = gated(&Team::alone(), level, one, &x[at.clone()], &y[at.clone()]);
            assert_eq!(bits(&alone), gated_rows[at]);
        }
    }
}

#[test]
fn threads_that_share_the_heads_of_tokens_change_no_bit() {
    let norm = RmsNorm { width: 96, eps: 1e-6, offset: 0.0 };
    for team in [Team::alone(), Team::parked(3)] {
        check_heads::<f32>(&team, [300, 8], norm, 100, 1);
        check_heads::<Bf16>(&team, [700, 8], norm, 100, 2);
    }
}

#[test]
fn a_pair_is_rotated_like_its_parts() {
    let queries = RopeShape { num_tokens: 500, num_heads: 9, head_dim: 64, rotary_dim: 50 };
    let keys = RopeShape { num_heads: 3, ..queries };
    let cases = [queries, keys].map(|shape| RopeCase { shape, gap: 3 });
    let x = [0, 1].map(|i| numbers::<f32>(cases[i].num_inputs(), i as u64, -2.0..2.0));
    let cos = numbers::<f32>(500 * 50, 3, -1.0..1.0);
    let sin = numbers::<f32>(500 * 50, 4, -1.0..1.0);
    for level in levels() {
        let mut together = [0, 1].map(|i| vec![0.0_f32; cases[i].num_outputs()]);
        let [q, k] = &mut together;
        let inputs = [cases[0].strided(&x[0]), cases[1].strided(&x[1])];
        let outputs = [q.as_mut_ptr(), k.as_mut_ptr()];
        let (team, angles) = (Team::parked(3), [cos.as_ptr(), sin.as_ptr()]);
        // SAFETY: the buffers have these sizes.
        unsafe { rope_pair(&team, level, [queries, keys], inputs, angles[0], angles[1], outputs) }
        for i in [0, 1] {
            let alone = cases[i].rotated(&Team::alone(), level, &x[i], &cos, &sin);
            assert_eq!(bits(&alone), bits(&together[i]));
        }
    }
}

#[test]
fn a_norm_may_overwrite_its_input() {
    let norm = RmsNorm { width: 37, eps: 1e-6, offset: 1.0 };
    let case = NormCase { num_rows: 3, norm, stride: 37 };
    let x = numbers::<Bf16>(3 * 37, 5, -2.0..2.0);
    let w = numbers::<Bf16>(37, 6, -1.0..1.0);
    for level in levels() {
        let expected = normed(&Team::alone(), level, &case, &x, &w);
        let mut in_place = x.clone();
        let to = in_place.as_mut_ptr();
        let input = Rows { data: to.cast_const(), stride: 37 };
        // SAFETY: the buffers have these sizes, and the output is the input.
        unsafe { rms_norm(&Team::alone(), level, 3, &norm, input, w.as_ptr(), to) }
        assert_eq!(in_place, expected);
    }
}

#[test]
#[should_panic(expected = "rotary_dim 7 must be even")]
fn an_odd_number_of_rotated_elements_is_refused() {
    let shape = RopeShape { num_tokens: 1, num_heads: 1, head_dim: 8, rotary_dim: 7 };
    let case = RopeCase { shape, gap: 0 };
    case.rotated(&Team::alone(), Level::Portable, &[0.0_f32; 8], &[0.0_f32; 7], &[0.0_f32; 7]);
}
