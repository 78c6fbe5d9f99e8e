//! Number formats of buffers; all arithmetic is in f32.

use crate::simd::Simd;

/// A number in memory.
///
/// # Safety
/// Loads and stores touch the elements that they name, from the pointer on, and may only run as
/// [`Simd`] allows.
#[allow(clippy::missing_safety_doc, reason = "the trait's section holds for every operation")]
pub unsafe trait Element: Copy + Send + Sync + 'static {
    /// Zero.
    const ZERO: Self;
    /// Elements of 32 bits, a word.
    const PER_WORD: usize;
    /// Widens to f32, exactly.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
    /// Reads `S::LANES` elements.
    unsafe fn load<S: Simd>(from: *const Self) -> S::F32;
    /// Reads `count <= S::LANES` elements; the other lanes are 0.
    unsafe fn load_first<S: Simd>(from: *const Self, count: usize) -> S::F32;
    /// Rounds and writes `S::LANES` elements.
    unsafe fn store<S: Simd>(to: *mut Self, x: S::F32);
    /// Rounds and writes the first `count <= S::LANES` elements.
    unsafe fn store_first<S: Simd>(to: *mut Self, count: usize, x: S::F32);
    /// z + the products of the elements of words `x` and `y`, given by their bits.
    unsafe fn mul_add_words<S: Simd>(x: S::F32, y: S::F32, z: S::F32) -> S::F32;
    /// The bits of a word with this element first, zeros behind it.
    fn word(self) -> f32;
    /// The bits of word `index` of `len` elements, filled up with zeros.
    ///
    /// # Safety
    /// The elements are there, and the word has one of them at least.
    #[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
    #[inline(always)]
    unsafe fn word_at(elements: *const Self, index: usize, len: usize) -> f32 {
        // SAFETY: the caller's condition.
        unsafe {
            let first = elements.add(index * Self::PER_WORD);
            if (index + 1) * Self::PER_WORD <= len {
                first.cast::<f32>().read_unaligned()
            } else {
                (*first).word()
            }
        }
    }
}

/// A bf16 number: the upper half of an f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Bf16(pub u16);

// SAFETY: the loads and stores of `Simd`.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
unsafe impl Element for f32 {
    const ZERO: Self = 0.0;
    const PER_WORD: usize = 1;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F32 {
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(from: *const Self, count: usize) -> S::F32 {
        unsafe { if count < S::LANES { S::load_first(from, count) } else { S::load(from) } }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, x: S::F32) {
        unsafe { S::store(to, x) }
    }
    #[inline(always)]
    unsafe fn store_first<S: Simd>(to: *mut Self, count: usize, x: S::F32) {
        unsafe { if count < S::LANES { S::store_first(to, count, x) } else { S::store(to, x) } }
    }
    #[inline(always)]
    unsafe fn mul_add_words<S: Simd>(x: S::F32, y: S::F32, z: S::F32) -> S::F32 {
        unsafe { S::mul_add(x, y, z) }
    }
    #[inline(always)]
    fn word(self) -> f32 {
        self
    }
}

// SAFETY: `load_bf16` and `store_bf16` touch LANES elements; less are copied one by one.
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
unsafe impl Element for Bf16 {
    const ZERO: Self = Self(0);
    const PER_WORD: usize = 2;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        if x.is_nan() {
            return Self((bits >> 16) as u16 | 0x40);
        }
        Self((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Self) -> S::F32 {
        unsafe { S::load_bf16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn load_first<S: Simd>(from: *const Self, count: usize) -> S::F32 {
        if count >= S::LANES {
            return unsafe { Self::load::<S>(from) };
        }
        let mut lanes = [Self::ZERO; 16];
        for (i, lane) in lanes.iter_mut().enumerate().take(count) {
            *lane = unsafe { *from.add(i) };
        }
        unsafe { Self::load::<S>(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut Self, x: S::F32) {
        unsafe { S::store_bf16(to.cast(), x) }
    }
    #[inline(always)]
    unsafe fn store_first<S: Simd>(to: *mut Self, count: usize, x: S::F32) {
        if count >= S::LANES {
            return unsafe { Self::store::<S>(to, x) };
        }
        let mut lanes = [Self::ZERO; 16];
        unsafe { Self::store::<S>(lanes.as_mut_ptr(), x) }
        for (i, lane) in lanes.into_iter().enumerate().take(count) {
            unsafe { *to.add(i) = lane }
        }
    }
    #[inline(always)]
    unsafe fn mul_add_words<S: Simd>(x: S::F32, y: S::F32, z: S::F32) -> S::F32 {
        unsafe { S::mul_add_pairs(x, y, z) }
    }
    #[inline(always)]
    fn word(self) -> f32 {
        let place = if cfg!(target_endian = "big") { 16 } else { 0 };
        f32::from_bits(u32::from(self.0) << place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level, run};

    struct Round<'a>(&'a [f32; 16], &'a mut [Bf16; 16]);

    impl Kernel for Round<'_> {
        type Output = ();

        #[allow(clippy::inline_always, reason = "compiled for the level that runs it")]
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for at in (0..16).step_by(S::LANES) {
                // SAFETY: the lanes lie within both arrays.
                unsafe {
                    Bf16::store::<S>(self.1.as_mut_ptr().add(at), S::load(self.0.as_ptr().add(at)));
                }
            }
        }
    }

    #[test]
    fn every_level_rounds_to_bf16_like_the_scalar() {
        let special = [
            f32::from_bits(0x3f80_8000), // half way, to even below
            f32::from_bits(0x3f81_8000), // half way, to even above
            f32::from_bits(0x3f80_8001),
            f32::from_bits(0x3f80_7fff),
            f32::NAN,
            f32::from_bits(0xff80_0001), // a NaN whose upper half is an infinity
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
            0.0,
            -0.0,
            f32::from_bits(1),
            f32::MIN_POSITIVE,
            -2.7,
            1e30,
        ];
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let mut rounded = [Bf16::ZERO; 16];
            run(level, Round(&special, &mut rounded));
            assert_eq!(rounded, special.map(Bf16::from_f32), "{level:?}");
        }
    }

    #[test]
    fn every_level_rounds_what_is_below_the_normal_numbers_or_makes_it_0() {
        let small = [-1e-40; 16];
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let mut rounded = [Bf16::ZERO; 16];
            run(level, Round(&small, &mut rounded));
            let expected = if level == Level::Avx512Bf16 { -0.0 } else { small[0] };
            assert_eq!(rounded, [Bf16::from_f32(expected); 16], "{level:?}");
        }
    }
}
