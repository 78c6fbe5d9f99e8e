//! Elementary functions against double precision, at every level.
#![allow(unsafe_code, reason = "kernels are unsafe")]

use treepo_kernels::math;
use treepo_kernels::simd::{Kernel, Level, Simd, run};

/// Applies a function to every element; `is_tanh` or exp.
struct Map<'a> {
    values: &'a mut [f32],
    is_tanh: bool,
}

impl Kernel for Map<'_> {
    type Output = ();

    #[allow(clippy::inline_always, reason = "inlined into a function that enables instructions")]
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for value in self.values {
            // SAFETY: `run` only passes levels that are available.
            *value = unsafe {
                let x = S::splat(*value);
                S::largest(if self.is_tanh { math::tanh::<S>(x) } else { math::exp::<S>(x) })
            };
        }
    }
}

fn map(inputs: &[f32], is_tanh: bool, level: Level) -> Vec<f32> {
    let mut values = inputs.to_vec();
    run(level, Map { values: &mut values, is_tanh });
    values
}

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

fn steps(from: f32, to: f32, count: u16) -> Vec<f32> {
    (0..=count).map(|i| from + (to - from) * f32::from(i) / f32::from(count)).collect()
}

#[test]
fn exp_is_right_to_three_units_in_the_last_place() {
    let mut inputs = steps(-87.3, 88.3, 40_000);
    inputs.extend(steps(-1e-3, 1e-3, 1000));
    for level in levels() {
        for (x, y) in inputs.iter().zip(map(&inputs, false, level)) {
            let exact = f64::from(*x).exp();
            let unit = f64::from(f32::EPSILON) * exact.log2().floor().exp2();
            assert!((f64::from(y) - exact).abs() < 3.0 * unit, "exp({x}) = {y}, {}", level.name());
        }
    }
}

#[test]
fn exp_is_0_far_below_and_finite_far_above() {
    for level in levels() {
        let low = [f32::NEG_INFINITY, f32::MIN, -1e4, -104.0, -88.0];
        assert_eq!(map(&low, false, level), [0.0; 5]);
        let high = map(&[f32::INFINITY, f32::MAX, 1e4], false, level);
        assert!(high.iter().all(|x| x.is_finite() && *x > 2e38), "{high:?}");
        assert_eq!(map(&[0.0, -0.0], false, level), [1.0, 1.0]);
    }
}

#[test]
fn tanh_is_right_to_3e_7_of_its_size_and_2e_7() {
    let mut inputs = steps(-12.0, 12.0, 40_000);
    inputs.extend(steps(-1e-3, 1e-3, 1000));
    inputs.extend([1e-20, -1e-30, 40.0, -90.0, 1e30, f32::MAX, f32::MIN, f32::INFINITY]);
    for level in levels() {
        for (x, y) in inputs.iter().zip(map(&inputs, true, level)) {
            let exact = f64::from(*x).tanh();
            let limit = (3e-7 * exact.abs()).min(2e-7);
            assert!((f64::from(y) - exact).abs() <= limit, "tanh({x}) = {y}, {}", level.name());
        }
    }
}
