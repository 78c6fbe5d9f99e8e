//! Products of bf16 pairs against double precision, at every level.
#![allow(unsafe_code, reason = "kernels are unsafe")]

use proptest::prelude::*;
use treepo_kernels::element::{Bf16, Element};
use treepo_kernels::simd::{Kernel, Level, Simd, run};

/// Sixteen lanes: pairs, pairs and what their products are added to.
#[derive(Debug, Clone, Copy)]
struct Operands {
    x: [[Bf16; 2]; 16],
    y: [[Bf16; 2]; 16],
    z: [f32; 16],
}

struct MulAddPairs(Operands);

impl Kernel for MulAddPairs {
    type Output = [f32; 16];

    #[allow(clippy::inline_always, reason = "inlined into a function that enables instructions")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> [f32; 16] {
        let Operands { x, y, mut z } = self.0;
        for at in (0..16).step_by(S::LANES) {
            // SAFETY: the lanes lie within the arrays, and a pair has the size of an f32.
            unsafe {
                let [x, y] = [&x, &y].map(|pairs| S::load(pairs.as_ptr().add(at).cast()));
                let to = z.as_mut_ptr().add(at);
                S::store(to, S::mul_add_pairs(x, y, S::load(to)));
            }
        }
        z
    }
}

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

fn pairs(values: [f32; 2]) -> [[Bf16; 2]; 16] {
    [values.map(Bf16::from_f32); 16]
}

/// The same in every lane.
fn results(x: [f32; 2], y: [f32; 2], z: f32) -> impl Iterator<Item = (Level, f32)> {
    let operands = Operands { x: pairs(x), y: pairs(y), z: [z; 16] };
    levels().map(move |level| {
        let lanes = run(level, MulAddPairs(operands));
        assert!(lanes.iter().all(|lane| lane.to_bits() == lanes[0].to_bits()), "{lanes:?}");
        (level, lanes[0])
    })
}

/// Products and what they are added to, in f64.
fn parts(operands: &Operands, lane: usize) -> [f64; 3] {
    let Operands { x, y, z } = operands;
    let wide = |number: Bf16| f64::from(number.to_f32());
    let product = |i: usize| wide(x[lane][i]) * wide(y[lane][i]);
    [product(0), product(1), f64::from(z[lane])]
}

/// A bf16 number of a size from 2^-20 to 2^20, or 0.
fn bf16() -> impl Strategy<Value = Bf16> {
    let sized = (-1.0_f32..1.0, -20..=20_i32).prop_map(|(x, power)| x * 2.0_f32.powi(power));
    prop_oneof![9 => sized, 1 => Just(0.0)].prop_map(Bf16::from_f32)
}

prop_compose! {
    fn operands()(
        x in prop::array::uniform16([bf16(), bf16()]),
        y in prop::array::uniform16([bf16(), bf16()]),
        z in prop::array::uniform16(bf16()),
        tail in prop::array::uniform16(-1.0_f32..1.0),
    ) -> Operands {
        // More digits than bf16 has.
        let z = std::array::from_fn(|i| z[i].to_f32() * (1.0 + tail[i] / 256.0));
        Operands { x, y, z }
    }
}

proptest! {
    #[test]
    fn both_products_are_added_up_to_two_roundings(operands in operands()) {
        for level in levels() {
            for (lane, found) in run(level, MulAddPairs(operands)).into_iter().enumerate() {
                let parts = parts(&operands, lane);
                let expected: f64 = parts.iter().sum();
                let size: f64 = parts.iter().map(|x| x.abs()).sum();
                let error = (f64::from(found) - expected).abs();
                prop_assert!(error <= size * 2.0 * 2.0_f64.powi(-24), "{}: {error}", level.name());
            }
        }
    }

    #[test]
    fn whole_numbers_give_their_exact_sum(
        x in [-128..=128_i16, -128..=128_i16],
        y in [-128..=128_i16, -128..=128_i16],
        z in -30_000..=30_000_i16,
    ) {
        let exact: i32 = (0..2).map(|i| i32::from(x[i]) * i32::from(y[i])).sum();
        for (level, found) in results(x.map(f32::from), y.map(f32::from), f32::from(z)) {
            let expected = (exact + i32::from(z)) as f32;
            prop_assert_eq!(found.to_bits(), expected.to_bits(), "{}", level.name());
        }
    }
}

#[test]
fn a_nan_or_infinity_of_either_element_reaches_the_sum() {
    for (x, y) in [([f32::NAN, 1.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, f32::NAN])] {
        assert!(results(x, y, 1.0).all(|(_, found)| found.is_nan()));
    }
    for x in [[f32::INFINITY, 1.0], [1.0, f32::INFINITY]] {
        assert!(results(x, [1.0, 1.0], 1.0).all(|(_, found)| found == f32::INFINITY));
        assert!(results(x, [-1.0, -1.0], 1.0).all(|(_, found)| found == f32::NEG_INFINITY));
    }
    assert!(results([1.0, 1.0], [1.0, 1.0], f32::NAN).all(|(_, found)| found.is_nan()));
}

#[test]
fn numbers_too_small_for_an_exponent_count_in_full_or_as_0() {
    let small = f32::from_bits(3 << 16); // 3 * 2^-133
    for (level, found) in results([small, 0.0], [64.0, 0.0], 0.0) {
        let possible = [0.0, 64.0 * small].map(f32::to_bits);
        assert!(possible.contains(&found.to_bits()), "{}: {found}", level.name());
    }
    for (level, found) in results([0.0, small], [0.0, 64.0], 1.0) {
        assert_eq!(found.to_bits(), 1.0_f32.to_bits(), "{}", level.name());
    }
}
