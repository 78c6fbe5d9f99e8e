//! Weights in the order in which tiles read them.

use super::LinearShape;
use crate::element::Element;
use crate::elementwise::{Output, Rows, nanos_of_bytes, spread};
use crate::simd::Level;
use crate::team::Team;

/// Vectors of a panel's width.
pub(super) const VECTORS: usize = 2;

/// Outputs of a panel.
pub fn panel_width(level: Level) -> usize {
    VECTORS
        * match level {
            Level::Portable | Level::Neon | Level::Avx2 => 8,
            Level::Avx512 | Level::Avx512Bf16 => 16,
        }
}

/// Elements of a packed weight.
pub fn packed_len<T: Element>(level: Level, shape: LinearShape) -> usize {
    shape.out_features.div_ceil(panel_width(level)) * panel_len::<T>(level, shape)
}

/// Elements of a panel.
pub(super) fn panel_len<T: Element>(level: Level, shape: LinearShape) -> usize {
    panel_width(level) * shape.in_features.next_multiple_of(T::PER_WORD)
}

/// Packs a weight. Panel p holds, for each word of inputs, that word of outputs p * width..; outputs
/// and inputs that are too many are zeros.
///
/// # Safety
/// `weight` holds `out_features` rows of `in_features` elements, and `packed` has room for
/// [`packed_len`]; no other thread writes them meanwhile, and they do not overlap.
pub unsafe fn pack<T: Element>(
    team: &Team,
    level: Level,
    shape: LinearShape,
    weight: Rows<T>,
    packed: *mut T,
) {
    let width = panel_width(level);
    let panel_len = panel_len::<T>(level, shape);
    let packed = Output(packed);
    let nanos = nanos_of_bytes(4 * panel_len * size_of::<T>());
    spread(team, shape.out_features.div_ceil(width), nanos, |panels| {
        for panel in panels {
            for lane in 0..width {
                let output = panel * width + lane;
                let from = weight.row(output);
                for i in 0..panel_len / width {
                    let (word, part) = (i / T::PER_WORD, i % T::PER_WORD);
                    let is_there = output < shape.out_features && i < shape.in_features;
                    let at = (word * width + lane) * T::PER_WORD + part;
                    // SAFETY: the panel lies within `packed`, and the element exists.
                    unsafe {
                        let to = packed.pointer().add(panel * panel_len + at);
                        *to = if is_there { *from.add(i) } else { T::ZERO };
                    }
                }
            }
        }
    });
}
