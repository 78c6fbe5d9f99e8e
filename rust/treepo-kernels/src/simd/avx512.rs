//! Sixteen lanes of AVX-512.

#[allow(clippy::wildcard_imports, reason = "intrinsics carry their own prefix")]
use core::arch::x86_64::*;
use core::mem::transmute;

use super::{Kernel, Simd};

/// With or without `AVX512_BF16`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>;

/// # Safety
/// The processor has AVX-512 F, BW, DQ and VL, AVX2 and FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[inline(never)]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own condition.
    unsafe { kernel.run::<Avx512<false>>() }
}

/// # Safety
/// The same, and it has `AVX512_BF16`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
#[inline(never)]
pub(super) unsafe fn run_bf16<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own condition.
    unsafe { kernel.run::<Avx512<true>>() }
}

fn first(count: usize) -> __mmask16 {
    debug_assert!(count < 16);
    (1 << count) - 1
}

// SAFETY: each operation is the intrinsic of its name; loads and stores touch what they say.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
unsafe impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 16;
    const HAS_PAIRS: bool = BF16;
    type F32 = __m512;

    #[inline(always)]
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
        unsafe { if BF16 { run_bf16(kernel) } else { run(kernel) } }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(first(count), from) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: __m512) {
        unsafe {
            if BF16 {
                let rounded = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                _mm256_storeu_si256(to.cast(), rounded);
                return;
            }
            let bits = _mm512_castps_si512(x);
            let upper = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
            let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, up));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let quiet = _mm512_set1_epi32(0x40);
            let result = _mm512_mask_or_epi32(rounded, is_nan, upper, quiet);
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(result));
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, count: usize, x: __m512) {
        unsafe { _mm512_mask_storeu_ps(to, first(count), x) }
    }
    #[inline(always)]
    unsafe fn add(x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_add_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn sub(x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn mul(x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn div(x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_div_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn mul_add(x: __m512, y: __m512, z: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(x, y, z) }
    }
    #[inline(always)]
    unsafe fn mul_add_pairs(x: __m512, y: __m512, z: __m512) -> __m512 {
        unsafe {
            let [x, y] = [x, y].map(|pairs| _mm512_castps_si512(pairs));
            if BF16 {
                let [x, y] = [x, y].map(|pairs| transmute::<__m512i, __m512bh>(pairs));
                return _mm512_dpbf16_ps(z, x, y);
            }
            let first = |pairs| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
            let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let second = |pairs| _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
            _mm512_fmadd_ps(second(x), second(y), _mm512_fmadd_ps(first(x), first(y), z))
        }
    }
    #[inline(always)]
    unsafe fn max(x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_max_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn min(x: __m512, y: __m512) -> __m512 {
        unsafe { _mm512_min_ps(x, y) }
    }
    #[inline(always)]
    unsafe fn reciprocal_sqrt(x: __m512) -> __m512 {
        unsafe { _mm512_div_ps(_mm512_set1_ps(1.0), _mm512_sqrt_ps(x)) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(x: __m512) -> __m512 {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    unsafe fn keep_first(x: __m512, count: usize, other: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(if count >= 16 { 0xffff } else { first(count) }, other, x) }
    }
    #[inline(always)]
    unsafe fn keep_at_least(value: __m512, x: __m512, bound: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, bound), value) }
    }
    #[inline(always)]
    unsafe fn store_at_least(to: *mut f32, value: __m512, x: __m512, bound: __m512) -> usize {
        unsafe {
            let kept = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, bound);
            _mm512_storeu_ps(to, _mm512_maskz_compress_ps(kept, value));
            kept.count_ones() as usize
        }
    }
    #[inline(always)]
    unsafe fn sum(x: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(x) }
    }
    #[inline(always)]
    unsafe fn largest(x: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(x) }
    }
}
