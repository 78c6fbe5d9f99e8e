//! Eight lanes of AVX2 with FMA.

#[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
use core::arch::x86_64::*;

use super::{Kernel, Simd};

#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2;

/// # Safety
/// The processor has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own condition.
    unsafe { kernel.run::<Avx2>() }
}

/// All bits set in the first `count` lanes.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
unsafe fn first(count: usize) -> __m256i {
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes)
    }
}

// SAFETY: each operation is the intrinsic of its name; loads and stores touch what they say.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
unsafe impl Simd for Avx2 {
    const LANES: usize = 8;
    type F32 = __m256;

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
        unsafe { run(kernel) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(from, first(count)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m256 {
        unsafe {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: __m256) {
        unsafe {
            let bits = _mm256_castps_si256(x);
            let upper = _mm256_srli_epi32::<16>(bits);
            let odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
            let up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, up));
            let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
            let result = _mm256_blendv_epi8(rounded, quiet, is_nan);
            let low = _mm256_castsi256_si128(result);
            let packed = _mm_packus_epi32(low, _mm256_extracti128_si256::<1>(result));
            _mm_storeu_si128(to.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m256) {
        unsafe { _mm256_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, count: usize, x: __m256) {
        unsafe { _mm256_maskstore_ps(to, first(count), x) }
    }
    #[inline(always)]
    unsafe fn add(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_add_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn sub(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn mul(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn div(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_div_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn mul_add(x: __m256, y: __m256, z: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(x, y, z) }
    }
    #[inline(always)]
    unsafe fn mul_add_pairs(x: __m256, y: __m256, z: __m256) -> __m256 {
        unsafe {
            let [x, y] = [x, y].map(|pairs| _mm256_castps_si256(pairs));
            let first = |pairs| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs));
            let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            let second = |pairs| _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
            _mm256_fmadd_ps(second(x), second(y), _mm256_fmadd_ps(first(x), first(y), z))
        }
    }
    #[inline(always)]
    unsafe fn max(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_max_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn min(x: __m256, y: __m256) -> __m256 {
        unsafe { _mm256_min_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn reciprocal_sqrt(x: __m256) -> __m256 {
        unsafe { _mm256_div_ps(_mm256_set1_ps(1.0), _mm256_sqrt_ps(x)) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(x: __m256) -> __m256 {
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn round(x: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    unsafe fn keep_first(x: __m256, count: usize, other: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(other, x, _mm256_castsi256_ps(first(count.min(8)))) }
    }
    #[inline(always)]
    unsafe fn keep_at_least(value: __m256, x: __m256, bound: __m256) -> __m256 {
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(x, bound), value) }
    }
    #[inline(always)]
    unsafe fn store_at_least(to: *mut f32, value: __m256, x: __m256, bound: __m256) -> usize {
        unsafe {
            let mut kept = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(x, bound)) as u32;
            let mut lanes = [0.0_f32; 8];
            _mm256_storeu_ps(lanes.as_mut_ptr(), value);
            let mut count = 0;
            while kept != 0 {
                *to.add(count) = lanes[kept.trailing_zeros() as usize];
                kept &= kept - 1;
                count += 1;
            }
            count
        }
    }
    #[inline(always)]
    unsafe fn sum(x: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    unsafe fn largest(x: __m256) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
