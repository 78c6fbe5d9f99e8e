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
            Level::Avx512 => 16,
        }
}

/// Elements of a packed weight.
pub fn packed_len(level: Level, shape: LinearShape) -> usize {
    shape.out_features.next_multiple_of(panel_width(level)) * shape.in_features
}

/// Packs a weight. Panel p holds, for each input i, outputs p * width.. of that input; outputs
/// that the last panel has too many are zeros.
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
    let panel_len = width * shape.in_features;
    let packed = Output(packed);
    let nanos = nanos_of_bytes(4 * panel_len * size_of::<T>());
    spread(team, shape.out_features.div_ceil(width), nanos, |panels| {
        for panel in panels {
            for lane in 0..width {
                let output = panel * width + lane;
                // SAFETY: the panel lies within `packed`, and the row exists.
                unsafe {
                    let to = packed.pointer().add(panel * panel_len + lane);
                    let from = weight.row(output);
                    for i in 0..shape.in_features {
                        let is_there = output < shape.out_features;
                        *to.add(i * width) = if is_there { *from.add(i) } else { T::ZERO };
                    }
                }
            }
        }
    });
}
