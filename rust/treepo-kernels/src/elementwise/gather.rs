//! Rows by their indices.

use super::{Output, Rows, nanos_of_bytes, spread};
use crate::element::Element;
use crate::team::Team;

/// Copies the rows of `from` that `index` names, one after another.
///
/// # Safety
/// `from` has rows of `width` elements at all indices, and `to` has room for `index.len() * width`;
/// they do not overlap, and no other thread writes them meanwhile.
pub unsafe fn gather<T: Element>(
    team: &Team,
    index: &[i64],
    from: Rows<T>,
    width: usize,
    to: *mut T,
) {
    let to = Output(to);
    spread(team, index.len(), nanos_of_bytes(2 * width * size_of::<T>()), |rows| {
        for row in rows {
            // SAFETY: the caller's condition.
            unsafe {
                let to = to.pointer().add(row * width);
                from.row(index[row] as usize).copy_to_nonoverlapping(to, width);
            }
        }
    });
}
