//! From f32 to the format of buffers.

use crate::element::Element;
use crate::simd::Simd;

/// Rounds and writes `count` elements times `factor`; `from` can be read in whole vectors.
///
/// # Safety
/// Both have `count` elements; behind [`crate::simd::run`].
#[allow(clippy::inline_always, reason = "inlined into functions that enable the instructions")]
#[inline(always)]
pub(super) unsafe fn narrow<S: Simd, T: Element>(
    from: *const f32,
    count: usize,
    factor: f32,
    to: *mut T,
) {
    let whole = count / S::LANES * S::LANES;
    // SAFETY: the caller's condition.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            T::store::<S>(to.add(i), S::mul(S::load(from.add(i)), S::splat(factor)));
        }
        for i in whole..count {
            *to.add(i) = T::from_f32(*from.add(i) * factor);
        }
    }
}
