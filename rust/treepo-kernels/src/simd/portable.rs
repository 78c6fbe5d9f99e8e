//! Eight lanes in plain Rust, for every processor; the compiler vectorises them where it can.

use super::{Kernel, Simd};
use crate::element::{Bf16, Element};

#[derive(Debug, Clone, Copy)]
pub(super) struct Portable;

/// # Safety
/// Only that of the kernel.
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: every processor has this level.
    unsafe { kernel.run::<Portable>() }
}

type Lanes = [f32; 8];

#[allow(clippy::inline_always, reason = "as the other levels")]
#[inline(always)]
fn each(x: Lanes, y: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(x[i], y[i]))
}

/// Fused only where the processor surely has the instruction: the library's function is slow.
#[allow(clippy::inline_always, reason = "as the other levels")]
#[inline(always)]
fn fused(x: f32, y: f32, z: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        x.mul_add(y, z)
    } else {
        x * y + z
    }
}

// SAFETY: loads and stores touch what they say; nothing else is unsafe.
#[allow(clippy::inline_always, reason = "as the other levels")]
unsafe impl Simd for Portable {
    const LANES: usize = 8;
    type F32 = Lanes;

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
        unsafe { run(kernel) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Lanes {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Lanes {
        unsafe { from.cast::<Lanes>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Lanes {
        std::array::from_fn(|i| if i < count { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Lanes {
        let bits = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        bits.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: Lanes) {
        unsafe { to.cast::<[u16; 8]>().write_unaligned(x.map(|a| Bf16::from_f32(a).0)) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Lanes) {
        unsafe { to.cast::<Lanes>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, count: usize, x: Lanes) {
        for (i, lane) in x.into_iter().enumerate().take(count) {
            unsafe { *to.add(i) = lane }
        }
    }
    #[inline(always)]
    unsafe fn add(x: Lanes, y: Lanes) -> Lanes {
        each(x, y, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(x: Lanes, y: Lanes) -> Lanes {
        each(x, y, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(x: Lanes, y: Lanes) -> Lanes {
        each(x, y, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(x: Lanes, y: Lanes) -> Lanes {
        each(x, y, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn mul_add(x: Lanes, y: Lanes, z: Lanes) -> Lanes {
        std::array::from_fn(|i| fused(x[i], y[i], z[i]))
    }
    #[inline(always)]
    unsafe fn mul_add_pairs(x: Lanes, y: Lanes, z: Lanes) -> Lanes {
        let first = |pair: f32| f32::from_bits(pair.to_bits() << 16);
        let second = |pair: f32| f32::from_bits(pair.to_bits() & 0xffff_0000);
        std::array::from_fn(|i| {
            fused(second(x[i]), second(y[i]), fused(first(x[i]), first(y[i]), z[i]))
        })
    }
    #[inline(always)]
    unsafe fn max(x: Lanes, y: Lanes) -> Lanes {
        each(x, y, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(x: Lanes, y: Lanes) -> Lanes {
        each(x, y, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn reciprocal_sqrt(x: Lanes) -> Lanes {
        x.map(|a| 1.0 / a.sqrt())
    }
    #[inline(always)]
    unsafe fn exp2_whole(x: Lanes) -> Lanes {
        x.map(|a| f32::from_bits(((a as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn round(x: Lanes) -> Lanes {
        // Adding 1.5 * 2^23 leaves no bits behind the point.
        let shift = 12_582_912.0;
        x.map(|a| (a + shift) - shift)
    }
    #[inline(always)]
    unsafe fn keep_first(x: Lanes, count: usize, other: Lanes) -> Lanes {
        std::array::from_fn(|i| if i < count { x[i] } else { other[i] })
    }
    #[inline(always)]
    unsafe fn keep_at_least(value: Lanes, x: Lanes, bound: Lanes) -> Lanes {
        std::array::from_fn(|i| if x[i] >= bound[i] { value[i] } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn store_at_least(to: *mut f32, value: Lanes, x: Lanes, bound: Lanes) -> usize {
        let mut count = 0;
        for i in 0..8 {
            unsafe { *to.add(count) = value[i] }
            count += usize::from(x[i] >= bound[i]);
        }
        count
    }
    #[inline(always)]
    unsafe fn sum(x: Lanes) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|i| x[i] + x[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    unsafe fn largest(x: Lanes) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
    }
}
