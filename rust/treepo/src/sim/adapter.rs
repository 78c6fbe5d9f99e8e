//! The one place that knows which calls of search and scheduler serve token texts, verdicts and
//! snapshots.
#![allow(clippy::unnecessary_wraps, reason = "each call can fail once the search has it")]

use super::Caller;
use super::caller::Ruling;
use crate::error::Result;
use crate::ids::{PathId, TreeId};
use crate::schedule::Scheduler;
use crate::search::Search;

/// Whether the search follows the policies beyond the default ones.
pub(super) const HAS_POLICIES: bool = false;

/// Whether the search sets inclusion weights.
pub(super) const SETS_WEIGHTS: bool = false;

/// Gives the search the bytes of every token.
pub(super) fn set_texts(_search: &mut Search, _caller: &Caller) -> Result<()> {
    Ok(())
}

/// Gives the scheduler's search the bytes of every token.
pub(super) fn set_scheduler_texts(_scheduler: &mut Scheduler, _caller: &Caller) -> Result<()> {
    Ok(())
}

/// Paths that wait for a verdict, ascending.
pub(super) fn ended_segments(_search: &Search) -> Vec<(TreeId, PathId)> {
    Vec::new()
}

/// Tells the search a verdict.
pub(super) fn report(
    _search: &mut Search,
    _tree: TreeId,
    _path: PathId,
    _ruling: Ruling,
) -> Result<()> {
    Ok(())
}

/// Tells the scheduler a verdict.
pub(super) fn report_to_scheduler(
    _scheduler: &mut Scheduler,
    _tree: TreeId,
    _path: PathId,
    _ruling: Ruling,
) -> Result<()> {
    Ok(())
}

/// The scheduler as another process would rebuild it from its bytes; none if it has none.
pub(super) fn rebuilt(_scheduler: &Scheduler) -> Result<Option<Scheduler>> {
    Ok(None)
}
