//! A scheduler between two steps as data.
//!
//! Keys and values are not part of it, and so neither is the memory that they lie in: what live
//! paths need is computed again. By law S4 that changes no token.

use serde::{Deserialize, Serialize};

use super::{Place, Scheduler, SchedulerConfig, Stats};
use crate::error::{Error, Result};
use crate::ids::{PathId, TreeId};
use crate::memory::Use;
use crate::search::{Event, Search, SearchSnapshot};
use crate::snapshot::{Content, decode, encode};

/// More than anything is ever counted to; beyond it sums would leave 64 bits.
const MAX_COUNTER: u64 = u64::MAX / 4;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TreeSnapshot {
    is_queued: bool,
    priority: i32,
    num_sampled: u64,
    /// By path; empty for a tree that is done.
    high_water: Vec<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SchedulerSnapshot {
    config: SchedulerConfig,
    search: SearchSnapshot,
    trees: Vec<TreeSnapshot>,
    finished: Vec<TreeId>,
    stats: Stats,
}

impl Scheduler {
    /// The scheduler with its half-grown forest as bytes, for [`Scheduler::from_bytes`]. O(tokens).
    ///
    /// # Errors
    /// `InvalidInput` while a plan is open.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        self.check_no_plan("taking a snapshot")?;
        let trees = (0..).map(TreeId).zip(&self.trees).map(|(tree, state)| TreeSnapshot {
            is_queued: state.is_queued,
            priority: -self.memory.rank(tree, PathId(0)).urgency,
            num_sampled: state.num_sampled,
            high_water: state.paths.iter().map(|path| path.high_water).collect(),
        });
        let snapshot = SchedulerSnapshot {
            config: self.config,
            search: self.search.snapshot(),
            trees: trees.collect(),
            finished: self.finished.clone(),
            stats: self.stats(),
        };
        encode(Content::Scheduler, &snapshot)
    }

    /// The scheduler that these bytes are of, without keys and values: its first plans compute what
    /// live paths need. The forest becomes what it would have become, in any process. O(tokens).
    ///
    /// # Errors
    /// `InvalidInput` for bytes that are damaged, cut short, or of another kind or version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let snapshot: SchedulerSnapshot = decode(Content::Scheduler, bytes)?;
        let search = Search::of_snapshot(snapshot.search)?;
        let mut scheduler = Self::of_search(search, snapshot.config)?;
        scheduler.finished = snapshot.finished;
        scheduler.stats = snapshot.stats;
        scheduler.memory.set_num_evicted(snapshot.stats.evictions);
        let counters = snapshot.stats.entries().into_iter().map(|(_, count)| count);
        let served = snapshot.trees.iter().map(|tree| tree.num_sampled);
        if counters.chain(served).any(|count| count > MAX_COUNTER) {
            return Err(Error::InvalidInput("snapshot: a counter is out of range".into()));
        }
        if snapshot.trees.len() != scheduler.search.forest().trees().len() {
            return Err(Error::InvalidInput("snapshot: trees without state".into()));
        }
        for (tree, state) in (0..).map(TreeId).zip(&snapshot.trees) {
            scheduler.resume_tree(tree, state)?;
        }
        scheduler.check().map_err(|error| Error::InvalidInput(format!("snapshot: {error}")))?;
        Ok(scheduler)
    }

    fn resume_tree(&mut self, tree: TreeId, state: &TreeSnapshot) -> Result<()> {
        let forest_tree = self.search.forest().tree(tree)?;
        let (num_paths, prompt_len) = (forest_tree.paths().len(), forest_tree.prompt_len);
        self.memory.check_fits(self.search.max_path_len(prompt_len)?)?;
        self.enter_tree(tree)?;
        self.trees[tree.index()].num_sampled = state.num_sampled;
        if self.search.is_tree_done(tree) {
            self.leave_queue(tree);
            self.memory.free_tree(tree)?;
            self.trees[tree.index()].paths = Vec::new();
            return Ok(());
        }
        for p in 1..num_paths as u32 {
            self.add_path(tree, PathId(p), 0)?;
        }
        for (own, &high_water) in self.trees[tree.index()].paths.iter_mut().zip(&state.high_water) {
            own.high_water = high_water;
        }
        self.set_priority(tree, state.priority)?;
        for path in (0..num_paths as u32).map(PathId) {
            self.resume_path(tree, path);
        }
        if !state.is_queued {
            self.leave_queue(tree);
            self.open_tree(tree);
        }
        Ok(())
    }

    fn resume_path(&mut self, tree: TreeId, path: PathId) {
        match self.search.resumed(tree, path) {
            Some(Event::Waits(..)) => {
                self.state_mut(tree, path).place = Place::EndedSegment;
                self.num_ended_segments += 1;
            }
            Some(_) => self.wait(tree, path),
            None => self.memory.set_use(tree, path, Use::Finished),
        }
    }
}
