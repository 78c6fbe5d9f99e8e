//! Vectors of f32 for every instruction set, and the choice among them at run time.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// Eight lanes in plain Rust.
    Portable,
    /// NEON of aarch64, eight lanes in two registers.
    Neon,
    /// AVX2 and FMA, eight lanes.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL), sixteen lanes.
    Avx512,
    /// The same with products of bf16 pairs (`AVX512_BF16`).
    Avx512Bf16,
}

impl Level {
    /// Every level, slowest first.
    pub const ALL: [Self; 5] =
        [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The fastest level of this processor.
    pub fn detect() -> Self {
        let mut levels = Self::ALL.into_iter().rev();
        levels.find(|level| level.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether this processor has the level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => {
                Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Avx512Bf16 => false,
        }
    }

    /// Its name in messages and options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512_bf16",
        }
    }
}

/// A vector of f32 and the operations that kernels need.
///
/// # Safety
/// Every operation may use instructions of its level, so it may only run behind [`run`] at a level
/// that is available. Loads and stores touch [`Simd::LANES`] elements from the pointer on, which
/// need not be aligned.
#[allow(clippy::missing_safety_doc, reason = "the trait's section holds for every operation")]
pub unsafe trait Simd: Copy {
    /// Elements of a vector.
    const LANES: usize;
    /// Whether [`Simd::mul_add_pairs`] is an instruction of its own.
    const HAS_PAIRS: bool = false;
    /// The vector.
    type F32: Copy;

    /// Runs a kernel in a function that has the level's instructions.
    unsafe fn enter<K: Kernel>(kernel: K) -> K::Output;
    /// [`Simd::enter`] as a function of its own, so that the kernel has all registers. It does not
    /// have the instructions: rustc 1.95 drops `inline(never)` from functions that enable some.
    #[inline(never)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: this function's own condition.
        unsafe { Self::enter(kernel) }
    }
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::F32;
    /// Reads `LANES` elements.
    unsafe fn load(from: *const f32) -> Self::F32;
    /// Reads `count < LANES` elements; the other lanes are 0.
    unsafe fn load_first(from: *const f32, count: usize) -> Self::F32;
    /// Reads `LANES` bf16 numbers, given by their bits.
    unsafe fn load_bf16(from: *const u16) -> Self::F32;
    /// Rounds to nearest, ties to even, and writes the bits of `LANES` bf16 numbers; a NaN stays one.
    /// Numbers below 2^-126 may become 0.
    unsafe fn store_bf16(to: *mut u16, x: Self::F32);
    /// Writes `LANES` elements.
    unsafe fn store(to: *mut f32, x: Self::F32);
    /// Writes the first `count < LANES` elements.
    unsafe fn store_first(to: *mut f32, count: usize, x: Self::F32);
    /// x + y.
    unsafe fn add(x: Self::F32, y: Self::F32) -> Self::F32;
    /// x - y.
    unsafe fn sub(x: Self::F32, y: Self::F32) -> Self::F32;
    /// x * y.
    unsafe fn mul(x: Self::F32, y: Self::F32) -> Self::F32;
    /// x / y.
    unsafe fn div(x: Self::F32, y: Self::F32) -> Self::F32;
    /// x * y + z, rounded once where the level has a fused product.
    unsafe fn mul_add(x: Self::F32, y: Self::F32, z: Self::F32) -> Self::F32;
    /// x * y + z where each lane of `x` and `y` holds the bits of two bf16 numbers: the sum of both
    /// products and `z`. Numbers below 2^-126 may count as 0.
    unsafe fn mul_add_pairs(x: Self::F32, y: Self::F32, z: Self::F32) -> Self::F32;
    /// The larger of each lane; a NaN in `x` gives `y`.
    unsafe fn max(x: Self::F32, y: Self::F32) -> Self::F32;
    /// The smaller of each lane; a NaN in `x` gives `y`.
    unsafe fn min(x: Self::F32, y: Self::F32) -> Self::F32;
    /// 1 / sqrt(x) to full precision.
    unsafe fn reciprocal_sqrt(x: Self::F32) -> Self::F32;
    /// 2 to the power of integers: lanes hold whole numbers from -127 (gives 0) to 127.
    unsafe fn exp2_whole(x: Self::F32) -> Self::F32;
    /// The nearest whole number, ties to even; lanes lie within +-2^22.
    unsafe fn round(x: Self::F32) -> Self::F32;
    /// `x` where `index < count`, else `other`.
    unsafe fn keep_first(x: Self::F32, count: usize, other: Self::F32) -> Self::F32;
    /// `value` where `x >= bound`, else 0.
    unsafe fn keep_at_least(value: Self::F32, x: Self::F32, bound: Self::F32) -> Self::F32;
    /// Packs the lanes of `value` where `x >= bound`, writes them and returns their number; what
    /// follows them up to `LANES` elements may be written too.
    unsafe fn store_at_least(
        to: *mut f32,
        value: Self::F32,
        x: Self::F32,
        bound: Self::F32,
    ) -> usize;
    /// The sum of all lanes, in a tree that is the same for every call.
    unsafe fn sum(x: Self::F32) -> f32;
    /// The largest lane.
    unsafe fn largest(x: Self::F32) -> f32;
}

/// Work that is compiled for every level.
pub trait Kernel {
    /// What it returns.
    type Output;

    /// Does the work. Implementations carry `#[inline(always)]`, as does every generic function
    /// they call, so that they are compiled with the level's instructions.
    ///
    /// # Safety
    /// Only called by [`run`].
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs a kernel with the instructions of `level`.
///
/// # Panics
/// If this processor does not have the level.
pub fn run<K: Kernel>(level: Level, kernel: K) -> K::Output {
    assert!(level.is_available(), "this processor has no {}", level.name());
    // SAFETY: the level is available.
    unsafe {
        match level {
            Level::Portable => portable::run(kernel),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => neon::run(kernel),
            #[cfg(not(target_arch = "aarch64"))]
            Level::Neon => unreachable!(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => avx512::run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => avx512::run_bf16(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            Level::Avx2 | Level::Avx512 | Level::Avx512Bf16 => unreachable!(),
        }
    }
}

/// Asks for the cache line at an address, which need not be valid.
#[allow(clippy::inline_always, reason = "one instruction")]
#[inline(always)]
pub fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is there on every x86-64; the instruction reads nothing.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// [`prefetch`] into the second cache only, for what is needed later.
#[allow(clippy::inline_always, reason = "one instruction")]
#[inline(always)]
pub fn prefetch_far(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is there on every x86-64; the instruction reads nothing.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
