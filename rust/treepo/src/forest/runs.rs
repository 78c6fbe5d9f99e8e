//! Which tokens of a tree's paths were given and which policy version sampled the others, as runs.

use std::collections::TryReserveError;

use super::links::{Links, List};

/// Own tokens of a path from `start` on, up to the path's next run. A path begins with the run
/// `Run::default()`, which is not stored: most paths need none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Run {
    /// First own token.
    pub(super) start: u32,
    /// Policy version.
    pub(super) version: u32,
    /// Whether the tokens were given to the model, not sampled.
    pub(super) is_given: bool,
}

/// The runs of all paths of a tree, one list a path.
#[derive(Debug, Clone, Default)]
pub(super) struct Runs {
    runs: Vec<Run>,
    links: Links,
}

impl Runs {
    /// Makes room for `extra` further runs.
    pub(super) fn reserve(&mut self, extra: usize) -> Result<(), TryReserveError> {
        self.runs.try_reserve_exact(extra)?;
        self.links.reserve(extra)
    }

    /// Bytes of the runs, with the room that is not used.
    pub(super) fn bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Run>() + self.links.capacity() * Links::BYTES
    }

    /// Policy version of the path's last token, 0 without one.
    pub(super) fn version(&self, list: List) -> u32 {
        list.last().map_or(0, |last| self.runs[last].version)
    }

    /// Starts a run, unless the path's last one is like it. O(1).
    #[inline]
    pub(super) fn start(&mut self, list: &mut List, run: Run) {
        let last = list.last().map_or(Run::default(), |last| self.runs[last]);
        if last.version != run.version || last.is_given != run.is_given {
            self.links.push(list);
            self.runs.push(run);
        }
    }

    /// The path's runs with the number of their tokens, of `len` in all.
    pub(super) fn pieces(
        &self,
        list: List,
        len: u32,
    ) -> impl Iterator<Item = (usize, Run)> + Clone + '_ {
        let stored = self.links.ascending(list).map(|run| self.runs[run]);
        let ends = stored.clone().map(|run| run.start).chain(std::iter::once(len));
        let runs = std::iter::once(Run::default()).chain(stored);
        runs.zip(ends).map(|(run, end)| ((end - run.start) as usize, run))
    }

    /// The path's run that holds own token `i`, from `from` on backwards.
    #[inline]
    pub(super) fn find(&self, from: Option<usize>, i: u32) -> Option<usize> {
        let mut current = from;
        while let Some(run) = current.filter(|&run| self.runs[run].start > i) {
            current = self.links.prev(run);
        }
        current
    }

    /// Whether the tokens of a run were given.
    #[inline]
    pub(super) fn is_given(&self, run: Option<usize>) -> bool {
        run.is_some_and(|run| self.runs[run].is_given)
    }

    /// Whether a path's runs ascend within its `len` own tokens.
    pub(super) fn is_list(&self, list: List, len: u32) -> bool {
        let starts = self.links.ascending(list).map(|run| self.runs[run].start);
        starts.clone().all(|start| start < len) && starts.is_sorted_by(|a, b| a < b)
    }
}
