//! The scheduler: search plus memory plus time, at token granularity.
//!
//! [`Scheduler::plan_step`] assembles one flat step of decode rows and prefill chunks;
//! [`Scheduler::commit_step`] takes the sampled tokens. Running paths go first, decode before
//! prefill, older trees before younger ones; what is left of the step's tokens admits waiting
//! paths and then new trees, as many as may grow within twice the pool. When blocks run out,
//! residue goes first, then waiting paths, then the youngest running path is preempted and
//! computed again later.
//!
//! Paths that have just forked are sampled from one row: they have the same tokens, so the row's
//! logits serve all of them (`sample_index` repeats).
//!
//! Laws: S1 a plan is not empty while work remains; S2 no limit is exceeded; S3 same inputs, same
//! plan; S4 no decision of the search sees the schedule; S5 no token is sampled twice, and its
//! keys and values are computed again only after eviction, which is counted.

mod assemble;
mod commit;
mod plan;
mod stats;

use std::collections::{BTreeSet, VecDeque};

pub use plan::{PlanBuffers, PlanCapacity, PlanSizes};
pub use stats::Stats;

use crate::error::{Error, Result, law};
use crate::forest::Forest;
use crate::ids::{PathId, TreeId};
use crate::memory::{Memory, Use};
use crate::search::{Event, Search, SearchConfig};

/// Trees are admitted until their worst growth fills this many pools. Most paths end early, so 1
/// leaves the pool half empty; without a limit, trees evict each other's blocks.
pub(crate) const ADMISSION_OPTIMISM: u64 = 2;

/// Limits of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Blocks of the pool, the reserved block 0 included.
    pub num_blocks: u32,
    /// Tokens of a block.
    pub block_size: u32,
    /// Rows of a step at most.
    pub max_num_seqs: u32,
    /// Tokens of a step at most.
    pub max_num_batched_tokens: u32,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { num_blocks: 1024, block_size: 16, max_num_seqs: 256, max_num_batched_tokens: 2048 }
    }
}

impl SchedulerConfig {
    fn check(&self) -> Result<()> {
        let values = [
            ("block_size", self.block_size),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
        ];
        for (field, value) in values {
            if value < 1 {
                let message = format!("must be at least 1, got {value}");
                return Err(Error::InvalidConfig { field, message });
            }
        }
        Ok(())
    }
}

/// A row of the batch: the path in it, and how much of its block table the caller has.
#[derive(Debug, Clone, Copy)]
struct Row {
    tree: TreeId,
    path: PathId,
    table_len: u32,
}

/// What the scheduler knows of a path.
#[derive(Debug, Clone, Default)]
struct PathState {
    row: Option<u32>,
    /// The plan that last computed the path.
    planned: u64,
    /// Tokens from the path's start that have been computed at some time.
    high_water: u32,
    /// Paths with the same tokens that are sampled from this path's next logits.
    followers: Vec<PathId>,
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
}

/// Plans flat steps for a forest that grows.
#[derive(Debug, Clone)]
pub struct Scheduler {
    config: SchedulerConfig,
    search: Search,
    memory: Memory,
    paths: Vec<Vec<PathState>>,
    rows: Vec<Option<Row>>,
    free_rows: Vec<u32>,
    running: BTreeSet<(TreeId, PathId)>,
    waiting: BTreeSet<(TreeId, PathId)>,
    queue: VecDeque<TreeId>,
    num_open_trees: u32,
    /// Blocks that the open trees may need at worst.
    reserved: u64,
    finished: Vec<TreeId>,
    plan: OpenPlan,
    plan_number: u64,
    stats: Stats,
    order: Vec<(TreeId, PathId)>,
    events: Vec<Event>,
}

impl Scheduler {
    /// A scheduler without trees.
    ///
    /// # Errors
    /// `InvalidConfig` naming the field.
    pub fn new(search: SearchConfig, config: SchedulerConfig, seed: u64) -> Result<Self> {
        config.check()?;
        Ok(Self {
            config,
            search: Search::new(search, seed)?,
            memory: Memory::new(config.num_blocks, config.block_size)?,
            paths: Vec::new(),
            rows: vec![None; config.max_num_seqs as usize],
            free_rows: (0..config.max_num_seqs).rev().collect(),
            running: BTreeSet::new(),
            waiting: BTreeSet::new(),
            queue: VecDeque::new(),
            num_open_trees: 0,
            reserved: 0,
            finished: Vec::new(),
            plan: OpenPlan::default(),
            plan_number: 0,
            stats: Stats::default(),
            order: Vec::new(),
            events: Vec::new(),
        })
    }

    /// Elements that the plan arrays need at most.
    pub fn capacity(&self) -> PlanCapacity {
        let (rows, tokens) = (self.config.max_num_seqs, self.config.max_num_batched_tokens);
        let growth = 2 * rows + tokens / self.config.block_size;
        PlanCapacity {
            num_rows: rows as usize,
            num_tokens: tokens as usize,
            num_samples: rows as usize,
            num_copies: rows as usize,
            num_table_updates: (2 * self.config.num_blocks + growth) as usize,
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

    /// Sets the version of the weights that sample from here on.
    pub fn set_policy_version(&mut self, version: u32) {
        self.search.set_policy_version(version);
    }

    /// Queues a tree.
    ///
    /// # Errors
    /// `PromptTooLong`, `PoolTooSmall` if the pool cannot hold one path of this tree,
    /// `InvalidInput` for an empty prompt.
    pub fn add_tree(&mut self, key: u64, prompt: &[u32]) -> Result<TreeId> {
        let max_len = self.search.max_path_len(prompt.len() as u32)?;
        let needed = self.memory.blocks_for(max_len);
        let available = self.memory.pool().capacity();
        if needed > available {
            return Err(Error::PoolTooSmall { needed, available });
        }
        let tree = self.search.add_tree(key, prompt)?;
        self.paths.push(Vec::new());
        self.add_path(tree, PathId(0), 0);
        self.queue.push_back(tree);
        self.follow_events()?;
        Ok(tree)
    }

    /// Whether every tree is done.
    pub fn is_done(&self) -> bool {
        self.queue.is_empty() && self.num_open_trees == 0
    }

    /// Trees that have been done since the last call.
    pub fn take_finished(&mut self) -> Vec<TreeId> {
        std::mem::take(&mut self.finished)
    }

    /// Ends a tree at once and frees its memory.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown tree or while a plan is open.
    pub fn abort_tree(&mut self, tree: TreeId) -> Result<()> {
        if self.plan.is_open {
            return Err(Error::InvalidInput("commit the open plan before aborting a tree".into()));
        }
        self.search.forest().tree(tree)?;
        if self.search.is_tree_done(tree) {
            return Ok(());
        }
        self.search.abort_tree(tree)?;
        if let Some(place) = self.queue.iter().position(|&queued| queued == tree) {
            self.queue.remove(place);
            self.num_open_trees += 1;
            self.reserved += self.worst_growth(tree);
        }
        self.close_tree(tree)
    }

    /// Blocks that a tree needs if all its paths leave the prompt at once and get as long as may be.
    fn worst_growth(&self, tree: TreeId) -> u64 {
        let prompt_len = self.search.forest().trees()[tree.index()].prompt_len;
        let max_len = self.search.max_path_len(prompt_len).unwrap_or(prompt_len);
        let path = u64::from(self.memory.blocks_for(max_len - prompt_len) + 1);
        u64::from(self.memory.blocks_for(prompt_len)) + u64::from(self.search.config().width) * path
    }

    fn add_path(&mut self, tree: TreeId, path: PathId, high_water: u32) {
        self.memory.add_path(tree, path);
        self.paths[tree.index()].push(PathState { high_water, ..PathState::default() });
    }

    fn state(&self, tree: TreeId, path: PathId) -> &PathState {
        &self.paths[tree.index()][path.index()]
    }

    fn state_mut(&mut self, tree: TreeId, path: PathId) -> &mut PathState {
        &mut self.paths[tree.index()][path.index()]
    }

    /// Puts a path into a free row, if there is one.
    fn take_row(&mut self, tree: TreeId, path: PathId) -> bool {
        let Some(row) = self.free_rows.pop() else { return false };
        self.rows[row as usize] = Some(Row { tree, path, table_len: 0 });
        self.state_mut(tree, path).row = Some(row);
        self.running.insert((tree, path));
        true
    }

    /// Takes the path out of its row, if it has one.
    fn leave_row(&mut self, tree: TreeId, path: PathId) {
        if let Some(row) = self.state_mut(tree, path).row.take() {
            self.rows[row as usize] = None;
            self.free_rows.push(row);
            self.running.remove(&(tree, path));
        }
    }

    fn close_tree(&mut self, tree: TreeId) -> Result<()> {
        for p in 0..self.paths[tree.index()].len() {
            let path = PathId(p as u32);
            self.leave_row(tree, path);
            self.waiting.remove(&(tree, path));
        }
        self.paths[tree.index()] = Vec::new();
        self.memory.free_tree(tree)?;
        self.num_open_trees -= 1;
        self.reserved -= self.worst_growth(tree);
        self.finished.push(tree);
        Ok(())
    }

    /// Does what the search's events ask for.
    fn follow_events(&mut self) -> Result<()> {
        let mut events = std::mem::take(&mut self.events);
        self.search.swap_events(&mut events);
        for &event in &events {
            self.follow(event)?;
        }
        self.events = events;
        Ok(())
    }

    fn follow(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Waits(tree, path) => {
                self.leave_row(tree, path);
                self.memory.set_use(tree, path, Use::Waiting);
            }
            Event::Finished(tree, path) | Event::Pruned(tree, path) => {
                self.leave_row(tree, path);
                self.memory.set_use(tree, path, Use::Finished);
            }
            Event::Continues(tree, path) => self.wait(tree, path),
            Event::Forked { tree, path, leader } => {
                let at = self.search.forest().path(tree, path)?.at;
                self.add_path(tree, path, at);
                self.count_fork(tree, path)?;
                if leader == path {
                    self.wait(tree, path);
                } else {
                    self.state_mut(tree, leader).followers.push(path);
                }
            }
            Event::TreeDone(tree) => self.close_tree(tree)?,
        }
        Ok(())
    }

    /// Lets a path wait for a row; the paths of a queued tree wait for its admission first.
    fn wait(&mut self, tree: TreeId, path: PathId) {
        if self.queue.back() != Some(&tree) {
            self.waiting.insert((tree, path));
        }
    }

    fn count_fork(&mut self, tree: TreeId, path: PathId) -> Result<()> {
        use crate::forest::ForkOrigin::{Branch, Fallback};
        match self.search.forest().path(tree, path)?.origin {
            Branch => self.stats.branches += 1,
            Fallback => self.stats.fallbacks += 1,
            _ => {}
        }
        Ok(())
    }

    /// Checks the laws of scheduler, memory, search and forest in O(tokens + blocks).
    ///
    /// # Errors
    /// `LawBroken` with the first law that does not hold.
    pub fn check(&self) -> Result<()> {
        self.search.check()?;
        self.memory.check()?;
        let num_rows = self.rows.iter().flatten().count();
        let num_free = self.free_rows.len();
        law(
            num_rows + num_free == self.rows.len() && num_rows == self.running.len(),
            "S2",
            || format!("{num_rows} rows taken, {num_free} free, {} running", self.running.len()),
        )?;
        for (r, row) in self.rows.iter().enumerate() {
            let Some(Row { tree, path, .. }) = *row else { continue };
            law(self.state(tree, path).row == Some(r as u32), "S2", || format!("row {r}"))?;
        }
        law(
            !self.is_done() || self.memory.pool().num_free() == self.memory.pool().capacity(),
            "B4",
            || {
                format!(
                    "{} blocks are free of {}",
                    self.memory.pool().num_free(),
                    self.memory.pool().capacity()
                )
            },
        )
    }
}
