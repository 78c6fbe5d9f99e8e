//! The scheduler: search plus memory plus time, at token granularity.
//!
//! [`Scheduler::plan_step`] assembles one flat step of decode rows and prefill chunks;
//! [`Scheduler::commit_step`] takes the sampled tokens. Running paths go first, decode before
//! prefill, important and old trees before others; what is left of the step's tokens goes to
//! waiting paths and then to new trees, as many as may grow within the stated part of the pool.
//! When blocks run out, residue goes first, then waiting paths, then running ones; a path takes
//! nothing from a more important one unless nothing else can run.
//!
//! Paths that have just forked are sampled from one row: they have the same tokens, so the row's
//! logits serve all of them (`sample_index` repeats).
//!
//! Laws: S1 a plan is not empty while work remains; S2 no limit is exceeded; S3 same inputs, same
//! plan; S4 no decision of the search sees the schedule; S5 no token is sampled twice, and its
//! keys and values are computed again only after they were lost, which is counted.

mod admit;
mod arrays;
mod assemble;
mod caller;
mod check;
mod commit;
mod config;
mod follow;
mod groups;
mod order;
mod plan;
mod rows;
mod snapshot;
mod stats;

pub use arrays::PlanArrays;
pub use config::SchedulerConfig;
pub use groups::{GroupBuffers, GroupCapacity};
pub use plan::{PlanBuffers, PlanCapacity, PlanSizes};
pub use stats::Stats;

use crate::error::{Error, Result};
use crate::forest::Forest;
use crate::ids::{PathId, TreeId};
use crate::memory::Memory;
use crate::search::{Event, Search, SearchConfig};
use groups::GroupScratch;
use order::Orders;
use rows::Rows;

/// Where a path is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    /// In a row, a leaf, or a follower of a path in a row.
    #[default]
    Nowhere,
    /// Its tree is not admitted.
    Parked,
    /// It waits for a row.
    Waits,
    /// It waits for what another path of its tree computes of their common tokens.
    Behind,
    /// Its segment has ended and its round has not.
    EndedSegment,
}

/// What the scheduler knows of a path.
#[derive(Debug, Clone, Copy)]
struct PathState {
    row: Option<u32>,
    /// The plan that last computed the path.
    planned: u64,
    /// Tokens from the path's start that have been computed at some time.
    high_water: u32,
    /// The first path with the same tokens that is sampled from this path's next logits.
    first_follower: Option<PathId>,
    /// The last one; of meaning while there is a first.
    last_follower: PathId,
    /// The next one of the same leader, or behind the same path.
    next_follower: Option<PathId>,
    place: Place,
    /// Counts the turns that the path has been given.
    stamp: u32,
    is_listed: bool,
}

impl PathState {
    fn new(high_water: u32) -> Self {
        Self {
            row: None,
            planned: 0,
            high_water,
            first_follower: None,
            last_follower: PathId(0),
            next_follower: None,
            place: Place::Nowhere,
            stamp: 0,
            is_listed: false,
        }
    }
}

/// What the scheduler knows of a tree.
#[derive(Debug, Clone, Default)]
struct TreeState {
    paths: Vec<PathState>,
    is_queued: bool,
    is_open: bool,
    num_sampled: u64,
    /// Counts how often the tree has been queued.
    stamp: u32,
    /// Blocks that an open tree may still need at worst.
    reserved: u64,
    /// A path in a row that computes more than its last token.
    prefilling: Option<PathId>,
    /// The first of the paths that wait for it; `next_follower` leads on.
    first_behind: Option<PathId>,
}

/// A row of the open plan.
#[derive(Debug, Clone, Copy)]
struct Fed {
    tree: TreeId,
    path: PathId,
    end: u32,
}

/// A sampled token of the open plan; `leader` is the path whose row computes the logits.
#[derive(Debug, Clone, Copy)]
struct Sampled {
    tree: TreeId,
    path: PathId,
    leader: PathId,
}

/// The plan between `plan_step` and `commit_step`.
#[derive(Debug, Clone, Default)]
struct OpenPlan {
    is_open: bool,
    fed: Vec<Fed>,
    samples: Vec<Sampled>,
    /// How many of the running paths may still be preempted, counted from the most important.
    num_victims: usize,
    /// Whether the running paths have had their turn.
    is_for_waiting: bool,
    /// Waiting paths for which there were no blocks.
    skipped: Vec<(TreeId, PathId)>,
}

/// Plans flat steps for a forest that grows.
#[derive(Debug, Clone)]
pub struct Scheduler {
    config: SchedulerConfig,
    search: Search,
    memory: Memory,
    trees: Vec<TreeState>,
    rows: Rows,
    orders: Orders,
    num_open_trees: u32,
    /// Blocks that the open trees may need at worst.
    reserved: u64,
    /// Paths whose segment has ended and whose round has not.
    num_ended_segments: u32,
    finished: Vec<TreeId>,
    plan: OpenPlan,
    plan_number: u64,
    stats: Stats,
    events: Vec<Event>,
    group_scratch: GroupScratch,
}

impl Scheduler {
    /// A scheduler without trees.
    ///
    /// # Errors
    /// `InvalidConfig` naming the field.
    pub fn new(search: SearchConfig, config: SchedulerConfig, seed: u64) -> Result<Self> {
        Self::of_search(Search::new(search, seed)?, config)
    }

    fn of_search(search: Search, config: SchedulerConfig) -> Result<Self> {
        config.check()?;
        Ok(Self {
            config,
            search,
            memory: Memory::new(config.num_blocks, config.block_size)?,
            trees: Vec::new(),
            rows: Rows::new(config.max_num_seqs),
            orders: Orders::default(),
            num_open_trees: 0,
            reserved: 0,
            num_ended_segments: 0,
            finished: Vec::new(),
            plan: OpenPlan::default(),
            plan_number: 0,
            stats: Stats::default(),
            events: Vec::new(),
            group_scratch: GroupScratch::default(),
        })
    }

    /// Elements that the plan arrays need at most.
    pub fn capacity(&self) -> PlanCapacity {
        let (rows, tokens) =
            (self.config.max_num_seqs as usize, self.config.max_num_batched_tokens);
        let growth = 2 * rows + (tokens / self.config.block_size) as usize;
        PlanCapacity {
            num_rows: rows,
            num_tokens: tokens as usize,
            num_samples: rows,
            num_copies: rows,
            num_table_updates: 2 * self.config.num_blocks as usize + growth,
        }
    }

    /// The limits.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// The search with its forest.
    pub fn search(&self) -> &Search {
        &self.search
    }

    /// The memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The forest as it is.
    pub fn forest(&self) -> &Forest {
        self.search.forest()
    }

    /// Gives the forest away.
    pub fn into_forest(self) -> Forest {
        self.search.into_forest()
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        Stats { evictions: self.memory.num_evicted(), ..self.stats }
    }

    /// Sets the version of the weights that sample from here on. With a new version no prompt
    /// prefix is shared that was computed with the old one.
    ///
    /// # Errors
    /// `InvalidInput` while a plan is open, as its tokens are of the old version, and above
    /// `i32::MAX`.
    pub fn set_policy_version(&mut self, version: u32) -> Result<()> {
        self.check_no_plan("setting the policy version")?;
        let before = self.search.policy_version();
        self.search.set_policy_version(version)?;
        if version != before {
            self.memory.flush_prefixes();
        }
        Ok(())
    }

    /// Whether every tree is done.
    pub fn is_done(&self) -> bool {
        self.orders.num_queued == 0 && self.num_open_trees == 0
    }

    /// Trees that have been done since the last call.
    pub fn take_finished(&mut self) -> Vec<TreeId> {
        self.finished.drain(..).collect() // its room is kept
    }

    fn state(&self, tree: TreeId, path: PathId) -> &PathState {
        &self.trees[tree.index()].paths[path.index()]
    }

    fn state_mut(&mut self, tree: TreeId, path: PathId) -> &mut PathState {
        &mut self.trees[tree.index()].paths[path.index()]
    }

    fn check_no_plan(&self, what: &str) -> Result<()> {
        if self.plan.is_open {
            return Err(Error::InvalidInput(format!(
                "commit the open plan before {what}, or give it up with drop_memory"
            )));
        }
        Ok(())
    }
}
