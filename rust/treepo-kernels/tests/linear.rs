//! Packed linear layers against sums in f64, and the bits of a row in every batch.

#![allow(unsafe_code, reason = "the kernels take raw buffers")]

use proptest::prelude::*;
use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::elementwise::Rows;
use treepo_kernels::linear::{LinearShape, Summands, linear, pack, packed_len};
use treepo_kernels::simd::Level;
use treepo_kernels::team::Team;

/// Numbers in [-1, 1), the same for a seed.
fn numbers<T: Element>(count: usize, seed: u64) -> Vec<T> {
    let mut state = seed;
    let next = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..count).map(next).collect()
}

struct Layer<T> {
    shape: LinearShape,
    weight: Vec<T>,
    bias: Option<Vec<T>>,
    residual: Option<Vec<T>>,
    input: Vec<T>,
    /// From one input row's begin to the next one's.
    stride: usize,
}

impl<T: Unwritten> Layer<T> {
    fn new(num_rows: usize, shape: LinearShape, has: (bool, bool), gap: usize) -> Self {
        let LinearShape { in_features, out_features } = shape;
        let stride = in_features + gap;
        Self {
            shape,
            weight: numbers(in_features * out_features, 1),
            bias: has.0.then(|| numbers(out_features, 2)),
            residual: has.1.then(|| numbers(num_rows * out_features, 3)),
            input: numbers(num_rows * stride, 4),
            stride,
        }
    }

    /// The rows from `first` on.
    fn run(&self, team: &Team, level: Level, first: usize, num_rows: usize) -> Vec<T> {
        let LinearShape { in_features, out_features } = self.shape;
        let mut packed = vec![T::NOT_A_NUMBER; packed_len::<T>(level, self.shape)];
        let mut output = vec![T::NOT_A_NUMBER; num_rows * out_features];
        let weight = Rows { data: self.weight.as_ptr(), stride: in_features };
        let residual = self.residual.as_ref().map(|x| Rows {
            data: x.as_ptr().wrapping_add(first * out_features),
            stride: out_features,
        });
        let summands = Summands { bias: self.bias.as_ref().map(Vec::as_ptr), residual };
        let data = self.input.as_ptr().wrapping_add(first * self.stride);
        let input = Rows { data, stride: self.stride };
        // SAFETY: the buffers have the shapes that are passed.
        unsafe {
            pack(team, level, self.shape, weight, packed.as_mut_ptr());
            let (from, to) = (packed.as_ptr(), output.as_mut_ptr());
            linear(team, level, num_rows, self.shape, input, from, summands, to);
        }
        output
    }

    /// Result and the sum of the sizes of what is added up, in f64.
    fn expected(&self, row: usize, output: usize) -> (f64, f64) {
        let LinearShape { in_features, out_features } = self.shape;
        let wide = |x: T| f64::from(x.to_f32());
        let product = |i: usize| {
            wide(self.input[row * self.stride + i]) * wide(self.weight[output * in_features + i])
        };
        let bias = self.bias.as_ref().map(|x| wide(x[output]));
        let residual = self.residual.as_ref().map(|x| wide(x[row * out_features + output]));
        let parts = (0..in_features).map(product).chain(bias).chain(residual);
        parts.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()))
    }
}

/// What buffers hold before a kernel writes them.
trait Unwritten: Element {
    const NOT_A_NUMBER: Self;
    const ROUNDING: f64;
}

impl Unwritten for f32 {
    const NOT_A_NUMBER: Self = f32::NAN;
    const ROUNDING: f64 = 6e-8;
}

impl Unwritten for Bf16 {
    const NOT_A_NUMBER: Self = Self(0x7fc0);
    const ROUNDING: f64 = 1.0 / 256.0;
}

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

fn bits<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|x| x.to_f32().to_bits()).collect()
}

fn check<T: Unwritten>(num_rows: usize, shape: LinearShape, has: (bool, bool), gap: usize) {
    let layer = Layer::<T>::new(num_rows, shape, has, gap);
    for level in levels() {
        let found = layer.run(&Team::parked(3), level, 0, num_rows);
        for row in 0..num_rows {
            for output in 0..shape.out_features {
                let (expected, size) = layer.expected(row, output);
                let error = f64::from(found[row * shape.out_features + output].to_f32()) - expected;
                let allowed =
                    expected.abs() * T::ROUNDING + size * 6e-8 * (shape.in_features + 2) as f64;
                assert!(error.abs() <= allowed, "{}, {row}, {output}: {error}", level.name());
            }
            let alone = layer.run(&Team::alone(), level, row, 1);
            let width = shape.out_features;
            assert_eq!(bits(&alone), bits(&found[row * width..(row + 1) * width]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn rows_are_the_sums_of_their_products_and_have_the_same_bits_alone(
        num_rows in 0..28_usize,
        in_features in 0..40_usize,
        out_features in 1..70_usize,
        has in any::<(bool, bool)>(),
        gap in 0..3_usize,
    ) {
        let shape = LinearShape { in_features, out_features };
        check::<f32>(num_rows, shape, has, gap);
        check::<Bf16>(num_rows, shape, has, gap);
    }
}

#[test]
fn work_for_several_threads_and_blocks_gives_the_same() {
    // Rows of several blocks, in tasks of several panels.
    let shape = LinearShape { in_features: 1200, out_features: 130 };
    check::<f32>(75, shape, (true, true), 0);
    check::<Bf16>(150, shape, (true, true), 0);
}

#[test]
fn a_chain_of_products_may_end_anywhere() {
    // One chain, two and three of each format, with a last word that is whole or cut.
    for in_features in [63, 64, 65, 127, 128, 129, 130, 193, 319, 320, 321, 322, 640, 641, 643] {
        let shape = LinearShape { in_features, out_features: 35 };
        check::<f32>(13, shape, (true, false), 1);
        check::<Bf16>(13, shape, (true, false), 1);
    }
}
