//! A run, drawn from one seed.

use super::caller::Caller;
use super::draw::{self, Choices};
use super::{TokenRule, mix};
use crate::schedule::SchedulerConfig;
use crate::search::{FallbackConfig, FallbackFrom, SearchConfig};

/// Everything that a simulated run depends on.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// The search.
    pub search: SearchConfig,
    /// Pool, rows and tokens.
    pub limits: SchedulerConfig,
    /// The fake model's rule.
    pub rule: TokenRule,
    /// Token texts and verdicts.
    pub caller: Caller,
    /// Seed of the search's random numbers.
    pub seed: u64,
    /// Keys and prompts in order of arrival.
    pub prompts: Vec<(u64, Vec<u32>)>,
    /// The step at which each tree arrives, ascending.
    pub arrivals: Vec<u32>,
    /// Steps between two moves to another process, in a run of their own.
    pub snapshot_every: Option<u32>,
}

impl Scenario {
    /// Draws a scenario: tight and wide pools, rows and steps, short and long trees; half of them
    /// with the default policies.
    pub fn draw(seed: u64) -> Self {
        let mut choices = Choices::new(seed, 0xd1ce);
        let rule = TokenRule {
            vocab_size: choices.one_of(&[2, 50]),
            eos_token_ids: vec![50, 51],
            eos_permille: choices.one_of(&[0, 40, 150, 400]),
        };
        let prompts = draw_prompts(&mut choices);
        let search = draw_search(&mut choices, &rule, &prompts);
        let limits = draw_limits(&mut choices, &search, &prompts);
        let spread = choices.one_of(&[0, 3, 40]);
        let mut arrivals: Vec<u32> = prompts.iter().map(|_| choices.below(spread + 1)).collect();
        arrivals.sort_unstable();
        let (caller, seed_of_run) = (Caller::default(), mix(seed, 1));
        let mut scenario = Self {
            search,
            limits,
            rule,
            caller,
            seed: seed_of_run,
            prompts,
            arrivals,
            snapshot_every: None,
        };
        scenario.draw_more(&mut Choices::new(seed, 0x9011));
        scenario
    }

    /// Draws policies for half of the scenarios, and snapshots for some of all.
    fn draw_more(&mut self, choices: &mut Choices) {
        self.snapshot_every = choices.once_in(4).then(|| choices.one_of(&[1, 3, 10]));
        self.caller.pieces = draw::draw_pieces(choices, 52);
        if choices.once_in(2) {
            return;
        }
        draw::draw_policies(choices, &mut self.search, &mut self.caller);
        if choices.once_in(4) {
            let size = self.limits.block_size;
            let one_path = Self::blocks_of_one_path(&self.search, &self.prompts, size);
            draw::draw_storm(choices, one_path, &mut self.limits);
        }
    }

    /// Blocks that the longest path of these trees needs.
    fn blocks_of_one_path(search: &SearchConfig, prompts: &[(u64, Vec<u32>)], size: u32) -> u32 {
        let longest = prompts.iter().map(|(_, prompt)| prompt.len() as u32).max().unwrap_or(1);
        (longest + search.max_completion_len()).min(search.max_model_len).div_ceil(size)
    }
}

fn draw_prompts(choices: &mut Choices) -> Vec<(u64, Vec<u32>)> {
    let longest = choices.one_of(&[3, 12, 40]);
    let shared: Vec<u32> = (0..longest).map(|_| choices.below(50)).collect();
    let num_trees = choices.between(1, 5);
    let prompt = |i: u32| {
        let len = choices.between(1, longest) as usize;
        let mut prompt = shared[..len].to_vec();
        if choices.below(3) > 0 {
            for token in &mut prompt {
                *token = (*token * 7 + i) % 50;
            }
        }
        (mix(u64::from(i), u64::from(choices.below(1000))), prompt)
    };
    (0..num_trees).map(prompt).collect()
}

fn draw_search(
    choices: &mut Choices,
    rule: &TokenRule,
    prompts: &[(u64, Vec<u32>)],
) -> SearchConfig {
    let longest = prompts.iter().map(|(_, prompt)| prompt.len() as u32).max().unwrap_or(1);
    let max_completion_len = (choices.below(4) == 0).then(|| choices.between(1, 20));
    let is_short = choices.below(4) == 0;
    SearchConfig {
        width: choices.between(1, 12),
        segment_len: choices.between(1, 7),
        max_depth: choices.between(1, 6),
        branch_factor: choices.between(1, 4),
        initial_divergence: choices.between(1, 4),
        fallback: FallbackConfig {
            from: if choices.below(6) == 0 {
                FallbackFrom::Nothing
            } else {
                FallbackFrom::Answered
            },
            ..FallbackConfig::default()
        },
        max_completion_len,
        max_model_len: if is_short { longest + choices.between(1, 12) } else { 1000 },
        eos_token_ids: rule.eos_token_ids.clone(),
        ..SearchConfig::default()
    }
}

fn draw_limits(
    choices: &mut Choices,
    search: &SearchConfig,
    prompts: &[(u64, Vec<u32>)],
) -> SchedulerConfig {
    let block_size = choices.one_of(&[1, 2, 4, 16]);
    let one_path = Scenario::blocks_of_one_path(search, prompts, block_size);
    let blocks = match choices.below(4) {
        0 => one_path,
        1 => one_path + choices.below(4),
        2 => one_path + choices.below(2 * one_path + 1),
        _ => 40 * one_path,
    };
    SchedulerConfig {
        num_blocks: blocks + 1,
        block_size,
        max_num_seqs: choices.one_of(&[1, 2, 3, 7, 64]),
        max_num_batched_tokens: choices.one_of(&[1, 2, 5, 16, 256]),
        admission_percent: choices.one_of(&[50, 200, 1000]),
        age_bias: choices.one_of(&[0, 10, u32::MAX]),
    }
}
