//! When a path becomes a leaf.

use super::SearchConfig;
use crate::forest::FinishReason;

/// The finish reason of a path whose newest token is `token`, if it ends with it. An
/// end-of-sequence token comes before the length limit, and this before the depth limit.
///
/// `depth` counts the segment that the token belongs to.
pub(super) fn finish_reason(
    config: &SearchConfig,
    token: u32,
    full: bool,
    segment_ends: bool,
    depth: u32,
) -> Option<FinishReason> {
    if config.eos_token_ids.contains(&token) {
        Some(FinishReason::Stop)
    } else if full {
        Some(FinishReason::Length)
    } else if segment_ends && depth >= config.max_depth {
        Some(FinishReason::Depth)
    } else {
        None
    }
}
