//! The laws of the scheduler.

use super::rows::Row;
use super::{Place, Scheduler};
use crate::error::{Result, law};

impl Scheduler {
    /// Checks the laws of scheduler, memory, search and forest in O(tokens + blocks).
    ///
    /// # Errors
    /// `LawBroken` with the first law that does not hold.
    pub fn check(&self) -> Result<()> {
        self.search.check()?;
        self.memory.check()?;
        self.check_rows()?;
        self.check_places()?;
        let (free, capacity) = (self.memory.pool().num_free(), self.memory.pool().capacity());
        law(!self.is_done() || free == capacity, "B4", || {
            format!("{free} blocks are free of {capacity}")
        })
    }

    fn check_rows(&self) -> Result<()> {
        let num_rows = self.rows.taken.iter().flatten().count();
        let num_free = self.rows.free.len();
        law(num_rows + num_free == self.rows.taken.len(), "S2", || {
            format!("{num_rows} rows taken, {num_free} free")
        })?;
        for (r, row) in self.rows.taken.iter().enumerate() {
            let Some(Row { tree, path, .. }) = *row else { continue };
            let state = self.state(tree, path);
            let fits = state.row == Some(r as u32) && state.place == Place::Nowhere;
            law(fits && state.is_listed, "S2", || format!("row {r}"))?;
        }
        Ok(())
    }

    fn check_places(&self) -> Result<()> {
        let paths = || self.trees.iter().flat_map(|tree| &tree.paths);
        let count = |place| paths().filter(|path| path.place == place).count();
        let (waiting, ended) = (count(Place::Waits), count(Place::EndedSegment));
        law(waiting == self.orders.num_waiting, "S1", || format!("{waiting} paths wait"))?;
        law(ended == self.num_ended_segments as usize, "S1", || format!("{ended} ended"))?;
        for (t, tree) in self.trees.iter().enumerate() {
            let waits = tree.paths.iter().any(|path| path.place == Place::Behind);
            let computes = tree.prefilling.map(|path| tree.paths[path.index()].row.is_some());
            law(computes.unwrap_or(!waits), "S1", || format!("tree {t}: paths wait for no row"))?;
        }
        let queued = self.trees.iter().filter(|tree| tree.is_queued).count();
        law(queued == self.orders.num_queued, "S1", || format!("{queued} trees are queued"))?;
        let open = self.trees.iter().filter(|tree| tree.is_open).count();
        law(open == self.num_open_trees as usize, "S1", || format!("{open} trees are open"))
    }
}
