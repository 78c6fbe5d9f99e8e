//! Eight lanes of NEON, in two registers: a tile of attention has room for no more, smaller vectors.

#[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
use core::arch::aarch64::*;

use super::{Kernel, Simd};

#[derive(Debug, Clone, Copy)]
pub(super) struct Neon;

/// # Safety
/// The processor has NEON.
#[target_feature(enable = "neon")]
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own condition.
    unsafe { kernel.run::<Neon>() }
}

/// All bits set in the first `count` lanes.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn first(count: usize) -> uint32x4x2_t {
    const LANES: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];
    unsafe {
        let count = vdupq_n_u32(count as u32);
        let [low, high] = [0, 4].map(|lane| vld1q_u32(LANES.as_ptr().add(lane)));
        uint32x4x2_t(vcltq_u32(low, count), vcltq_u32(high, count))
    }
}

/// Copies `count < 8` elements in parts of a size known here: a call would empty the registers.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn copy_first(from: *const f32, to: *mut f32, count: usize) {
    let mut at = 0;
    for part in [4, 2, 1] {
        if count & part != 0 {
            // SAFETY: the parts add up to `count`.
            unsafe { std::ptr::copy_nonoverlapping(from.add(at), to.add(at), part) }
            at += part;
        }
    }
}

/// `x` where all bits of `is_kept` are set, `other` where none is.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn select(is_kept: uint32x4x2_t, x: float32x4x2_t, other: float32x4x2_t) -> float32x4x2_t {
    unsafe { float32x4x2_t(vbslq_f32(is_kept.0, x.0, other.0), vbslq_f32(is_kept.1, x.1, other.1)) }
}

/// The bits of four bf16 numbers.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn round_bf16(x: float32x4_t) -> uint16x4_t {
    unsafe {
        let bits = vreinterpretq_u32_f32(x);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
        vshrn_n_u32::<16>(vbslq_u32(vceqq_f32(x, x), rounded, quiet))
    }
}

// SAFETY: each operation is the intrinsic of its name; loads and stores touch what they say.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
unsafe impl Simd for Neon {
    const LANES: usize = 8;
    type F32 = float32x4x2_t;

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
        unsafe { run(kernel) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4x2_t {
        unsafe { float32x4x2_t(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4x2_t {
        unsafe { float32x4x2_t(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> float32x4x2_t {
        let mut lanes = [0.0; 8];
        unsafe {
            copy_first(from, lanes.as_mut_ptr(), count);
            Self::load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> float32x4x2_t {
        unsafe {
            let bits = vld1q_u16(from);
            let low = vshlq_n_u32::<16>(vmovl_u16(vget_low_u16(bits)));
            let high = vshlq_n_u32::<16>(vmovl_high_u16(bits));
            float32x4x2_t(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: float32x4x2_t) {
        unsafe { vst1q_u16(to, vcombine_u16(round_bf16(x.0), round_bf16(x.1))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: float32x4x2_t) {
        unsafe {
            vst1q_f32(to, x.0);
            vst1q_f32(to.add(4), x.1);
        }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, count: usize, x: float32x4x2_t) {
        let mut lanes = [0.0; 8];
        unsafe {
            Self::store(lanes.as_mut_ptr(), x);
            copy_first(lanes.as_ptr(), to, count);
        }
    }
    #[inline(always)]
    unsafe fn add(x: float32x4x2_t, y: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vaddq_f32(x.0, y.0), vaddq_f32(x.1, y.1)) }
    }
    #[inline(always)]
    unsafe fn sub(x: float32x4x2_t, y: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vsubq_f32(x.0, y.0), vsubq_f32(x.1, y.1)) }
    }
    #[inline(always)]
    unsafe fn mul(x: float32x4x2_t, y: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vmulq_f32(x.0, y.0), vmulq_f32(x.1, y.1)) }
    }
    #[inline(always)]
    unsafe fn div(x: float32x4x2_t, y: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vdivq_f32(x.0, y.0), vdivq_f32(x.1, y.1)) }
    }
    #[inline(always)]
    unsafe fn mul_add(x: float32x4x2_t, y: float32x4x2_t, z: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vfmaq_f32(z.0, x.0, y.0), vfmaq_f32(z.1, x.1, y.1)) }
    }
    #[inline(always)]
    unsafe fn mul_add_pairs(x: float32x4x2_t, y: float32x4x2_t, z: float32x4x2_t) -> float32x4x2_t {
        unsafe {
            let first =
                |pairs| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(pairs)));
            let upper = vdupq_n_u32(0xffff_0000);
            let second =
                |pairs| vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pairs), upper));
            let sum = |x, y, z| vfmaq_f32(vfmaq_f32(z, first(x), first(y)), second(x), second(y));
            float32x4x2_t(sum(x.0, y.0, z.0), sum(x.1, y.1, z.1))
        }
    }
    // Not FMAX, which keeps a NaN of either side, nor FMAXNM, which keeps none.
    #[inline(always)]
    unsafe fn max(x: float32x4x2_t, y: float32x4x2_t) -> float32x4x2_t {
        unsafe { select(uint32x4x2_t(vcgtq_f32(x.0, y.0), vcgtq_f32(x.1, y.1)), x, y) }
    }
    #[inline(always)]
    unsafe fn min(x: float32x4x2_t, y: float32x4x2_t) -> float32x4x2_t {
        unsafe { select(uint32x4x2_t(vcltq_f32(x.0, y.0), vcltq_f32(x.1, y.1)), x, y) }
    }
    #[inline(always)]
    unsafe fn reciprocal_sqrt(x: float32x4x2_t) -> float32x4x2_t {
        unsafe { Self::div(Self::splat(1.0), float32x4x2_t(vsqrtq_f32(x.0), vsqrtq_f32(x.1))) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(x: float32x4x2_t) -> float32x4x2_t {
        unsafe {
            let [low, high] = [x.0, x.1].map(|x| {
                let biased = vaddq_s32(vcvtnq_s32_f32(x), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
            });
            float32x4x2_t(low, high)
        }
    }
    #[inline(always)]
    unsafe fn round(x: float32x4x2_t) -> float32x4x2_t {
        unsafe { float32x4x2_t(vrndnq_f32(x.0), vrndnq_f32(x.1)) }
    }
    #[inline(always)]
    unsafe fn keep_first(x: float32x4x2_t, count: usize, other: float32x4x2_t) -> float32x4x2_t {
        unsafe { select(first(count.min(8)), x, other) }
    }
    #[inline(always)]
    unsafe fn keep_at_least(
        value: float32x4x2_t,
        x: float32x4x2_t,
        bound: float32x4x2_t,
    ) -> float32x4x2_t {
        unsafe {
            let is_kept = uint32x4x2_t(vcgeq_f32(x.0, bound.0), vcgeq_f32(x.1, bound.1));
            select(is_kept, value, Self::splat(0.0))
        }
    }
    #[inline(always)]
    unsafe fn store_at_least(
        to: *mut f32,
        value: float32x4x2_t,
        x: float32x4x2_t,
        bound: float32x4x2_t,
    ) -> usize {
        unsafe {
            let low = vmovn_u32(vcgeq_f32(x.0, bound.0));
            let high = vmovn_u32(vcgeq_f32(x.1, bound.1));
            // A byte for each lane.
            let bytes = vmovn_u16(vcombine_u16(low, high));
            let mut kept = vget_lane_u64::<0>(vreinterpret_u64_u8(bytes)) & 0x0101_0101_0101_0101;
            let mut lanes = [0.0_f32; 8];
            Self::store(lanes.as_mut_ptr(), value);
            let mut count = 0;
            while kept != 0 {
                *to.add(count) = lanes[kept.trailing_zeros() as usize / 8];
                kept &= kept - 1;
                count += 1;
            }
            count
        }
    }
    #[inline(always)]
    unsafe fn sum(x: float32x4x2_t) -> f32 {
        unsafe {
            let four = vaddq_f32(x.0, x.1);
            vaddv_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }
    #[inline(always)]
    unsafe fn largest(x: float32x4x2_t) -> f32 {
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(x.0, x.1)) }
    }
}
