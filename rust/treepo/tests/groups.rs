//! Groups of rows against a naive computation from the block tables that the plans' updates build.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::select;
use treepo::sim::{FakeModel, PlanArrays, TokenRule};
use treepo::{Error, GroupBuffers, Result, SampledToken, Scheduler, SchedulerConfig, SearchConfig};

/// One group: rows of the plan, and the blocks `first..end` that they share.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    rows: BTreeSet<usize>,
    first: u32,
    end: u32,
}

struct Machine {
    scheduler: Scheduler,
    model: FakeModel,
    arrays: PlanArrays,
    /// `[row][logical index]` of what the table updates have told.
    tables: Vec<Vec<i32>>,
    /// How many groups lie within others at most, itself included.
    max_nesting: usize,
}

impl Machine {
    fn new(search: SearchConfig, limits: SchedulerConfig) -> Self {
        let rule = TokenRule { vocab_size: 9, eos_token_ids: vec![9], eos_permille: 60 };
        let scheduler = Scheduler::new(search, limits, 3).unwrap();
        let (blocks, size, rows) = (limits.num_blocks, limits.block_size, limits.max_num_seqs);
        Self {
            model: FakeModel::new(rule, blocks, size, rows),
            arrays: PlanArrays::new(&scheduler.capacity()),
            tables: vec![vec![0; blocks as usize]; rows as usize],
            max_nesting: 0,
            scheduler,
        }
    }

    /// Plans and runs a step; the plan's tables and the tokens to commit, if there is a plan.
    fn plan(&mut self) -> Option<(Vec<Vec<i32>>, Vec<SampledToken>)> {
        let sizes = self.scheduler.plan_step(&mut self.arrays.buffers()).unwrap();
        if sizes.num_rows == 0 {
            return None;
        }
        let plan = self.arrays.used(sizes);
        for update in plan.table_updates.chunks_exact(3) {
            self.tables[update[0] as usize][update[1] as usize] = update[2];
        }
        let block_size = self.scheduler.config().block_size as i32;
        let table = |(&row, &kv_len): (&i32, &i32)| {
            self.tables[row as usize][..((kv_len + block_size - 1) / block_size) as usize].to_vec()
        };
        let tables = plan.row_ids.iter().zip(&plan.kv_lens).map(table).collect();
        Some((tables, self.model.run(&plan).unwrap()))
    }

    fn groups(&mut self, num_rows: usize) -> (Vec<usize>, Vec<Group>) {
        let (mut row_order, mut groups) = (vec![-7; num_rows], vec![-7; 4 * num_rows]);
        let mut out = GroupBuffers { row_order: &mut row_order, groups: &mut groups };
        let num_groups = self.scheduler.group_rows(&mut out).unwrap();
        let row_order: Vec<usize> = row_order.iter().map(|&row| row as usize).collect();
        let group = |group: &[i32]| Group {
            rows: row_order[group[0] as usize..(group[0] + group[1]) as usize]
                .iter()
                .copied()
                .collect(),
            first: group[2] as u32,
            end: group[3] as u32,
        };
        let groups = groups.chunks_exact(4).take(num_groups).map(group).collect();
        (row_order, groups)
    }

    fn run(&mut self) {
        let mut num_steps = 0;
        while let Some((tables, tokens)) = self.plan() {
            let (row_order, groups) = self.groups(tables.len());
            let all: BTreeSet<usize> = row_order.iter().copied().collect();
            assert!(all.into_iter().eq(0..tables.len()), "{row_order:?} is no permutation");
            let nesting = check_groups(&tables, &groups);
            self.max_nesting = self.max_nesting.max(nesting);
            self.scheduler.commit_step(&tokens).unwrap();
            let pool = self.scheduler.memory().pool();
            self.model.poison(|block| pool.count(block) == 0);
            num_steps += 1;
            assert!(num_steps < 10_000, "S1: no end");
        }
        assert!(self.scheduler.is_done());
    }
}

fn common(a: &[i32], b: &[i32]) -> u32 {
    a.iter().zip(b).take_while(|(a, b)| a == b).count() as u32
}

/// All groups by trying every row and every length: the rows that agree up to a block which not
/// all of them go on with.
fn naive_groups(tables: &[Vec<i32>]) -> Vec<(BTreeSet<usize>, u32)> {
    let mut groups: Vec<(BTreeSet<usize>, u32)> = Vec::new();
    for (r, table) in tables.iter().enumerate() {
        for other in tables.iter().take(r) {
            let end = common(table, other);
            let agrees = |&q: &usize| common(&tables[q], table) >= end;
            let group = ((0..tables.len()).filter(agrees).collect(), end);
            if end > 0 && !groups.contains(&group) {
                groups.push(group);
            }
        }
    }
    groups
}

/// Holds the groups against the tables; returns how deep they nest.
fn check_groups(tables: &[Vec<i32>], groups: &[Group]) -> usize {
    for (a, table_a) in tables.iter().enumerate() {
        for (b, table_b) in tables.iter().enumerate().take(a) {
            let both = |group: &&Group| group.rows.contains(&a) && group.rows.contains(&b);
            let mut covered: Vec<u32> =
                groups.iter().filter(both).flat_map(|group| group.first..group.end).collect();
            covered.sort_unstable();
            assert!(covered.into_iter().eq(0..common(table_a, table_b)), "rows {a} and {b}");
        }
    }
    let mut expected = naive_groups(tables);
    let mut actual: Vec<_> = groups.iter().map(|group| (group.rows.clone(), group.end)).collect();
    expected.sort();
    actual.sort();
    assert_eq!(actual, expected, "groups of {tables:?}");
    check_order(groups)
}

/// A group comes behind those within it, and its blocks come before theirs.
fn check_order(groups: &[Group]) -> usize {
    let mut nesting = vec![1; groups.len()];
    for (i, group) in groups.iter().enumerate() {
        assert!(group.rows.len() > 1 && group.first < group.end, "{group:?}");
        for (j, inner) in groups.iter().enumerate().take(i) {
            if inner.rows.is_disjoint(&group.rows) {
                continue;
            }
            assert!(inner.rows.is_subset(&group.rows), "{inner:?} before {group:?}");
            assert!(inner.first >= group.end, "{inner:?} within {group:?}");
            nesting[i] = nesting[i].max(nesting[j] + 1);
        }
    }
    nesting.into_iter().max().unwrap_or(0)
}

fn limits() -> impl Strategy<Value = SchedulerConfig> {
    let numbers = (1u32..5, 0u32..120, 1u32..24, select(vec![3u32, 16, 200]));
    numbers.prop_map(|(block_size, more, max_num_seqs, max_num_batched_tokens)| SchedulerConfig {
        num_blocks: 1 + (20u32 + 24).div_ceil(block_size) + more,
        block_size,
        max_num_seqs,
        max_num_batched_tokens,
        ..SchedulerConfig::default()
    })
}

fn search() -> impl Strategy<Value = SearchConfig> {
    (1u32..20, 1u32..7, 1u32..4, 1u32..5).prop_map(|(width, len, factor, first)| SearchConfig {
        width,
        segment_len: len,
        max_depth: 24 / len,
        branch_factor: factor,
        initial_divergence: first,
        eos_token_ids: vec![9],
        ..SearchConfig::default()
    })
}

/// Fronts of one text, some with an end of their own.
fn prompts() -> impl Strategy<Value = Vec<Vec<u32>>> {
    let text = prop::collection::vec(0u32..9, 20);
    let cuts = prop::collection::vec((1usize..20, prop::collection::vec(0u32..2, 0..5)), 1..6);
    (text, cuts).prop_map(|(text, cuts)| {
        let prompt = |(len, end): (usize, Vec<u32>)| {
            let mut prompt = [text[..len].to_vec(), end].concat();
            prompt.truncate(20);
            prompt
        };
        cuts.into_iter().map(prompt).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn two_rows_share_exactly_the_groups_of_their_common_blocks(
        search in search(),
        limits in limits(),
        prompts in prompts(),
    ) {
        let mut machine = Machine::new(search, limits);
        for (key, prompt) in (0..).zip(&prompts) {
            machine.scheduler.add_tree(key, prompt).unwrap();
        }
        machine.run();
    }
}

/// A tree of two branches a round with blocks of one token.
fn deep() -> Machine {
    let search = SearchConfig {
        width: 16,
        segment_len: 2,
        max_depth: 6,
        initial_divergence: 1,
        ..SearchConfig::default()
    };
    let limits = SchedulerConfig { block_size: 1, max_num_seqs: 32, ..SchedulerConfig::default() };
    Machine::new(search, limits)
}

#[test]
fn groups_nest_as_deep_as_the_tree_branches() {
    let mut machine = deep();
    machine.scheduler.add_tree(1, &[4, 5]).unwrap();
    machine.run();
    assert_eq!(machine.max_nesting, 4, "16 leaves of two branches a round");
}

#[test]
fn a_prompt_that_two_trees_begin_with_is_a_group_around_both() {
    let mut machine = deep();
    machine.scheduler.add_tree(1, &[4, 5, 6]).unwrap();
    machine.scheduler.add_tree(2, &[4, 5, 7]).unwrap();
    let (tables, _) = machine.plan().unwrap();
    let (_, groups) = machine.groups(tables.len());
    assert_eq!(groups, [Group { rows: BTreeSet::from([0, 1]), first: 0, end: 2 }]);
}

fn group(scheduler: &mut Scheduler, num_rows: usize, num_values: usize) -> Result<usize> {
    let (mut row_order, mut groups) = (vec![0; num_rows], vec![0; num_values]);
    scheduler.group_rows(&mut GroupBuffers { row_order: &mut row_order, groups: &mut groups })
}

#[test]
fn groups_need_an_open_plan_and_room() {
    let mut machine = deep();
    machine.scheduler.add_tree(1, &[4, 5, 6]).unwrap();
    machine.scheduler.add_tree(2, &[4, 5, 7]).unwrap();
    let capacity = machine.scheduler.group_capacity();
    assert_eq!((capacity.num_rows, capacity.num_groups), (32, 32));
    assert!(matches!(group(&mut machine.scheduler, 32, 128), Err(Error::InvalidInput(_))));
    let (tables, tokens) = machine.plan().unwrap();
    assert_eq!(tables.len(), 2);
    let small = |array, needed, given| Err(Error::BufferTooSmall { array, needed, given });
    assert_eq!(group(&mut machine.scheduler, 1, 128), small("row_order", 2, 1));
    assert_eq!(group(&mut machine.scheduler, 32, 7), small("groups", 8, 7));
    assert_eq!(group(&mut machine.scheduler, 2, 8), Ok(1), "a refused call changes nothing");
    machine.scheduler.commit_step(&tokens).unwrap();
    assert!(matches!(group(&mut machine.scheduler, 32, 128), Err(Error::InvalidInput(_))));
}
