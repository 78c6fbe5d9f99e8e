//! A model that stores tokens in the slots of a paged cache and hashes what it reads back.

use std::collections::BTreeSet;

use super::{PlanArrays, mix};
use crate::error::{Result, law};
use crate::forest::SampledToken;
use crate::ids::BlockId;

/// How a token is drawn from a hash of what was read and a uniform number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRule {
    /// Ordinary tokens are `0..vocab_size`.
    pub vocab_size: u32,
    /// End-of-sequence tokens.
    pub eos_token_ids: Vec<u32>,
    /// Probability of an end-of-sequence token, in thousandths.
    pub eos_permille: u32,
}

impl TokenRule {
    /// The token after `tokens`, as a function of these and the uniform number alone.
    pub fn next(&self, tokens: &[u32], uniform: f64) -> SampledToken {
        let (mut lower, mut upper, mut state) = (START, START, 0);
        for (position, &token) in tokens.iter().enumerate() {
            let own = embed(i64::from(token), position as i64);
            lower = mix(lower, own);
            state = mix(lower, own);
            upper = mix(upper, state);
        }
        self.draw(mix(upper, state), uniform)
    }

    fn draw(&self, read: u64, uniform: f64) -> SampledToken {
        let draw = mix(read, uniform.to_bits());
        let ends = draw % 1000 < u64::from(self.eos_permille) && !self.eos_token_ids.is_empty();
        let choice = draw >> 20;
        let id = if ends {
            self.eos_token_ids[(choice % self.eos_token_ids.len() as u64) as usize]
        } else {
            (choice % u64::from(self.vocab_size)) as u32
        };
        let unit = |bits: u64| (bits >> 40) as f32 / (1u64 << 24) as f32;
        SampledToken { id, logprob: -5.0 * unit(draw), entropy: 3.0 * unit(mix(read, 1)) }
    }
}

const START: u64 = 0x51ab;

fn embed(token: i64, position: i64) -> u64 {
    mix(token as u64 + 1, position as u64)
}

/// One fed token.
#[derive(Debug, Clone, Copy)]
struct Query {
    row: usize,
    own: u64,
    slot: usize,
    /// Slots that it attends to.
    limit: u32,
}

/// Two layers of attention over a paged cache, with hashes in place of numbers.
///
/// The lower layer stores token and position, the upper one what the token read of the lower, as
/// in a transformer: a token computed on a wrong prefix spoils all that read it later.
#[derive(Debug, Clone)]
pub struct FakeModel {
    rule: TokenRule,
    block_size: usize,
    /// `[layer][slot]`; none is poison: nothing valid has been written.
    layers: [Vec<Option<u64>>; 2],
    /// `[row][logical index]` of what the table updates have told.
    tables: Vec<Vec<Option<usize>>>,
}

impl FakeModel {
    /// A model with an empty cache.
    pub fn new(rule: TokenRule, num_blocks: u32, block_size: u32, max_num_seqs: u32) -> Self {
        let slots = vec![None; (num_blocks * block_size) as usize];
        let tables = vec![vec![None; num_blocks as usize]; max_num_seqs as usize];
        Self { rule, block_size: block_size as usize, layers: [slots.clone(), slots], tables }
    }

    /// Runs one step of exactly these arrays and returns a token for each sample.
    ///
    /// # Errors
    /// `LawBroken` when a read finds nothing, or two writes meet.
    pub fn run(&mut self, plan: &PlanArrays) -> Result<Vec<SampledToken>> {
        for update in plan.table_updates.chunks_exact(3) {
            self.tables[update[0] as usize][update[1] as usize] = Some(update[2] as usize);
        }
        self.copy(&plan.copies)?;
        let queries = queries(plan);
        let written: BTreeSet<_> = queries.iter().map(|query| query.slot).collect();
        let num_real = queries.iter().filter(|query| query.slot > 0).count();
        law(written.iter().filter(|&&slot| slot > 0).count() == num_real, "B3", || {
            "two tokens of a step write one slot".into()
        })?;
        let embedded: Vec<u64> = queries.iter().map(|query| query.own).collect();
        let lower = self.layer(0, &queries, &embedded)?;
        let upper = self.layer(1, &queries, &lower)?;
        let samples = plan.sample_index.iter().zip(&plan.uniforms);
        Ok(samples.map(|(&i, &uniform)| self.rule.draw(upper[i as usize], uniform)).collect())
    }

    /// Forgets what is in the blocks that `is_free`.
    pub fn poison(&mut self, is_free: impl Fn(BlockId) -> bool) {
        for block in 0..self.layers[0].len() / self.block_size {
            if is_free(BlockId(block as u32)) {
                let slots = block * self.block_size..(block + 1) * self.block_size;
                self.layers.iter_mut().for_each(|layer| layer[slots.clone()].fill(None));
            }
        }
    }

    /// Reads all sources, then writes all destinations and poisons what lies behind `num_slots`.
    fn copy(&mut self, copies: &[i32]) -> Result<()> {
        let triple = |copy: &[i32]| (copy[0] as usize, copy[1] as usize, copy[2] as usize);
        let copies: Vec<_> = copies.chunks_exact(3).map(triple).collect();
        let mut targets: Vec<usize> = copies.iter().map(|copy| copy.1).collect();
        targets.sort_unstable();
        let meets = copies.iter().any(|copy| targets.binary_search(&copy.0).is_ok());
        let twice = targets.windows(2).any(|pair| pair[0] == pair[1]);
        law(!meets && !twice && !targets.contains(&0), "B3", || {
            format!("copies read or write a block twice: {copies:?}")
        })?;
        let size = self.block_size;
        for layer in &mut self.layers {
            let old = layer.clone();
            for &(from, to, num_slots) in &copies {
                let target = &mut layer[to * size..(to + 1) * size];
                target.fill(None);
                target[..num_slots].copy_from_slice(&old[from * size..][..num_slots]);
            }
        }
        Ok(())
    }

    /// Writes each query's value, then lets each read all that it attends to.
    fn layer(&mut self, layer: usize, queries: &[Query], values: &[u64]) -> Result<Vec<u64>> {
        for (query, &value) in queries.iter().zip(values) {
            self.layers[layer][query.slot] = Some(value);
        }
        let reads = queries.iter().zip(values);
        reads.map(|(query, &value)| Ok(mix(self.read(layer, query)?, value))).collect()
    }

    fn read(&self, layer: usize, query: &Query) -> Result<u64> {
        let mut hash = START;
        for position in 0..query.limit as usize {
            let block = self.tables[query.row].get(position / self.block_size).copied().flatten();
            let slot = block.map(|block| block * self.block_size + position % self.block_size);
            let value = slot.filter(|&slot| slot >= self.block_size);
            let value = value.and_then(|slot| self.layers[layer][slot]);
            law(value.is_some(), "B3", || {
                format!("row {} reads nothing at position {position}, slot {slot:?}", query.row)
            })?;
            hash = mix(hash, value.unwrap_or(0));
        }
        Ok(hash)
    }
}

/// The fed tokens, row after row; the last of a row attends to `kv_lens` slots.
fn queries(plan: &PlanArrays) -> Vec<Query> {
    let mut queries = Vec::new();
    for (r, bounds) in plan.query_starts.windows(2).enumerate() {
        for i in bounds[0]..bounds[1] {
            let limit = (plan.kv_lens[r] - (bounds[1] - 1 - i)) as u32;
            let i = i as usize;
            let own = embed(plan.token_ids[i], plan.positions[i]);
            let (row, slot) = (plan.row_ids[r] as usize, plan.slot_mapping[i] as usize);
            queries.push(Query { row, own, slot, limit });
        }
    }
    queries
}
