//! A whole rollout with a toy model: `cargo run -p treepo --example toy`.
//!
//! The toy needs no cache, as its next token depends on the last one alone. An engine also applies
//! `table_updates`, does `copies`, writes keys and values to `slot_mapping` and reads them through
//! its block tables.
#![allow(clippy::print_stdout, reason = "an example shows its result")]

use treepo::{PathId, PlanBuffers, Result, SampledToken, Scheduler, SchedulerConfig, SearchConfig};

const LETTERS: &[u8] = b".abcdefgh"; // token 0 ends a sequence

/// The letter after `token`, drawn by inverting the distribution with one uniform number.
fn next(token: i64, uniform: f64) -> SampledToken {
    let id = (token as u32 + (uniform * 4.0) as u32) % LETTERS.len() as u32;
    SampledToken { id, logprob: 0.25f32.ln(), entropy: 4f32.ln() }
}

fn main() -> Result<()> {
    let (width, segment_len, eos_token_ids) = (6, 4, vec![0]);
    let search = SearchConfig { width, segment_len, eos_token_ids, ..SearchConfig::default() };
    let mut scheduler = Scheduler::new(search, SchedulerConfig::default(), 0)?;
    scheduler.add_tree(7, &[1, 2, 3])?;

    let capacity = scheduler.capacity();
    let (tokens, rows) = (capacity.num_tokens, capacity.num_rows);
    let (mut ids, mut positions, mut slots) = (vec![0; tokens], vec![0; tokens], vec![0; tokens]);
    let (mut starts, mut kv_lens, mut row_ids) = (vec![0; rows + 1], vec![0; rows], vec![0; rows]);
    let mut sample_index = vec![0; capacity.num_samples];
    let mut uniforms = vec![0.0; capacity.num_samples];
    let mut copies = vec![0; 3 * capacity.num_copies];
    let mut table_updates = vec![0; 3 * capacity.num_table_updates];

    while !scheduler.is_done() {
        let sizes = scheduler.plan_step(&mut PlanBuffers {
            token_ids: &mut ids,
            positions: &mut positions,
            slot_mapping: &mut slots,
            query_starts: &mut starts,
            kv_lens: &mut kv_lens,
            row_ids: &mut row_ids,
            sample_index: &mut sample_index,
            uniforms: &mut uniforms,
            copies: &mut copies,
            table_updates: &mut table_updates,
        })?;
        let samples = sample_index[..sizes.num_samples].iter().zip(&uniforms);
        let sampled: Vec<_> =
            samples.map(|(&i, &uniform)| next(ids[i as usize], uniform)).collect();
        scheduler.commit_step(&sampled)?;
    }

    let stats = scheduler.stats();
    let forest = scheduler.into_forest();
    for (p, path) in forest.trees()[0].paths().iter().enumerate() {
        let letters = forest.trees()[0].tokens(PathId(p as u32))?.into_iter();
        let text: String = letters.map(|id| LETTERS[id as usize] as char).collect();
        let (shared, own) = text.split_at(path.at as usize);
        println!("{:shared$}{own}  ({:?})", "", path.finish, shared = shared.len());
    }
    println!("{} tokens in {} steps", stats.decoded_tokens, stats.steps);
    Ok(())
}
