//! Steps of decode rows: sixteen trees whose paths share their prompt. The trees differ in length,
//! so that as many rows need a new block in one step as in another.

use treepo::{
    PlanBuffers, PlanCapacity, PlanSizes, Result, SampledToken, Scheduler, SchedulerConfig,
    SearchConfig,
};

use super::{BLOCK_SIZE, Run, TOKEN, prompt};

/// Steps of a run.
pub(crate) const STEPS: u32 = 64;

const NUM_TREES: u32 = 16;
const WARM_UP: u32 = 32;
const STEP_TOKENS: u32 = 65_536;
/// Tokens of a completion at most: paths that find a row early decode while others wait for theirs.
const MAX_TOKENS: u32 = 1_024;

/// `num_rows` decode rows that have about `num_blocks` blocks each.
pub(crate) fn steps(num_rows: u32, num_blocks: u32) -> Result<Run> {
    let mut rows = Rows::new(num_rows, num_blocks)?;
    rows.settle(num_rows as usize)?;
    Ok(Box::new(move || {
        for _ in 0..STEPS {
            let sizes = rows.step().expect("the rows go on");
            assert_eq!(sizes.num_tokens, num_rows as usize, "every row decodes");
        }
    }))
}

struct Rows {
    scheduler: Scheduler,
    arrays: Arrays,
    tokens: Vec<SampledToken>,
}

impl Rows {
    fn new(num_rows: u32, num_blocks: u32) -> Result<Self> {
        let prompt_len = num_blocks * BLOCK_SIZE - WARM_UP - STEPS / 2;
        let own_blocks = MAX_TOKENS.div_ceil(BLOCK_SIZE) + 1;
        let limits = SchedulerConfig {
            num_blocks: NUM_TREES * num_blocks + num_rows * own_blocks + 1,
            block_size: BLOCK_SIZE,
            max_num_seqs: num_rows,
            max_num_batched_tokens: STEP_TOKENS,
            ..SchedulerConfig::default()
        };
        let search = SearchConfig::flat(num_rows / NUM_TREES, MAX_TOKENS);
        let mut scheduler = Scheduler::new(search, limits, 0)?;
        for tree in 0..NUM_TREES {
            scheduler.add_tree(u64::from(tree), &prompt(tree, prompt_len - tree % BLOCK_SIZE))?;
        }
        let arrays = Arrays::new(scheduler.capacity());
        let tokens = vec![TOKEN; num_rows as usize];
        Ok(Self { scheduler, arrays, tokens })
    }

    /// Steps until every row decodes and has its block table, then warms up.
    fn settle(&mut self, num_rows: usize) -> Result<()> {
        let is_settled =
            |sizes: PlanSizes| sizes.num_tokens == num_rows && sizes.num_table_updates <= num_rows;
        while !is_settled(self.step()?) {}
        (0..WARM_UP).try_for_each(|_| self.step().map(|_| ()))
    }

    fn step(&mut self) -> Result<PlanSizes> {
        let sizes = self.scheduler.plan_step(&mut self.arrays.buffers())?;
        self.scheduler.commit_step(&self.tokens[..sizes.num_samples])?;
        Ok(sizes)
    }
}

/// The plan's arrays.
struct Arrays {
    /// Token ids, positions, slots.
    tokens: [Vec<i64>; 3],
    query_starts: Vec<i32>,
    /// Lengths, row ids.
    rows: [Vec<i32>; 2],
    sample_index: Vec<i64>,
    uniforms: Vec<f64>,
    copies: Vec<i32>,
    table_updates: Vec<i32>,
}

impl Arrays {
    fn new(capacity: PlanCapacity) -> Self {
        Self {
            tokens: std::array::from_fn(|_| vec![0; capacity.num_tokens]),
            query_starts: vec![0; capacity.num_rows + 1],
            rows: std::array::from_fn(|_| vec![0; capacity.num_rows]),
            sample_index: vec![0; capacity.num_samples],
            uniforms: vec![0.0; capacity.num_samples],
            copies: vec![0; 3 * capacity.num_copies],
            table_updates: vec![0; 3 * capacity.num_table_updates],
        }
    }

    fn buffers(&mut self) -> PlanBuffers<'_> {
        let [token_ids, positions, slot_mapping] = &mut self.tokens;
        let [kv_lens, row_ids] = &mut self.rows;
        PlanBuffers {
            token_ids,
            positions,
            slot_mapping,
            query_starts: &mut self.query_starts,
            kv_lens,
            row_ids,
            sample_index: &mut self.sample_index,
            uniforms: &mut self.uniforms,
            copies: &mut self.copies,
            table_updates: &mut self.table_updates,
        }
    }
}
