//! Draws of policies: every enum of the search's configuration.

use super::caller::{Caller, Judge};
use super::mix;
use crate::schedule::SchedulerConfig;
use crate::search::{
    Alignment, Boxed, BranchBy, BranchConfig, BudgetConfig, FallbackAt, FallbackConfig,
    FallbackFrom, Opportunistic, Prefer, PruneBy, PruneConfig, PrunedLeaves, Refill, Remainder,
    Repetition, SearchConfig, StopConfig, TemperatureSchedule, Total, Transfer, Verdicts,
};

/// A stream of small choices.
#[derive(Debug, Clone)]
pub(super) struct Choices(u64);

impl Choices {
    pub(super) fn new(seed: u64, purpose: u64) -> Self {
        Self(mix(seed, purpose))
    }

    pub(super) fn bits(&mut self) -> u64 {
        self.0 = mix(self.0, 0x5eed);
        self.0
    }

    pub(super) fn below(&mut self, n: u32) -> u32 {
        ((self.bits() >> 33) % u64::from(n)) as u32
    }

    pub(super) fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below(high - low + 1)
    }

    pub(super) fn one_of<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.below(options.len() as u32) as usize]
    }

    /// True once in `n` times.
    pub(super) fn once_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    fn sometimes(&mut self, low: u32, high: u32) -> Option<u32> {
        self.once_in(2).then(|| self.between(low, high))
    }
}

/// Texts in which stop strings, boxed answers and repetition come about often, whole and in parts.
const PIECES: [&str; 22] = [
    "a", "b", "\\boxed{", "}", "ab", "\\bo", "xed{", "{", "aa", "ST", "OP", "x", "}{", "ba", "\\",
    "boxed{1}", "1}", "STO", "\\}", "\\boxed", " {", "\\{",
];

const STOP_STRINGS: [&str; 7] = ["aab", "STOP", "}x", "ba", "b}{", "abab", "xSTOPx"];

/// Texts for ids below `num_ids`, the same ones in another order for each draw.
pub(super) fn draw_pieces(choices: &mut Choices, num_ids: u32) -> Vec<Vec<u8>> {
    let first = choices.below(PIECES.len() as u32);
    let piece = |id: u32| PIECES[(first + id) as usize % PIECES.len()].as_bytes().to_vec();
    (0..num_ids).map(piece).collect()
}

/// Replaces default policies by others.
pub(super) fn draw_policies(choices: &mut Choices, search: &mut SearchConfig, caller: &mut Caller) {
    if choices.once_in(2) {
        draw_branching(choices, search);
    }
    if choices.once_in(2) {
        draw_budget(choices, search);
    }
    if choices.below(3) > 0 {
        search.fallback = draw_fallback(choices, search.segment_len);
    }
    if choices.once_in(2) {
        search.stop = draw_stops(choices);
    }
    if choices.once_in(3) {
        search.prune = draw_pruning(choices);
    }
    let needs_scores = search.prune.by == PruneBy::Score || search.branch.by == BranchBy::Score;
    if needs_scores || choices.once_in(5) {
        search.verdicts = Verdicts::Segments;
        caller.judge = Some(draw_judge(choices, search));
    }
    if choices.once_in(16) {
        search.opportunistic = Opportunistic::StepTokens;
        search.step_tokens = choices.between(search.segment_len, 12 * search.segment_len);
    }
}

fn draw_branching(choices: &mut Choices, search: &mut SearchConfig) {
    let by = choices.one_of(&[
        BranchBy::Even,
        BranchBy::PathLogprob,
        BranchBy::MeanLogprob,
        BranchBy::SegmentLogprob,
        BranchBy::SegmentEntropy,
        BranchBy::Score,
        BranchBy::TokenSurprisal,
        BranchBy::TokenEntropy,
        BranchBy::TokenEntropyAbove,
    ]);
    let schedules =
        [TemperatureSchedule::Constant, TemperatureSchedule::Linear, TemperatureSchedule::Sinusoid];
    search.branch = BranchConfig {
        by,
        prefer: choices.one_of(&[Prefer::Low, Prefer::High]),
        temperature: choices.one_of(&[0.2, 1.0, 6.0]),
        final_temperature: choices.one_of(&[0.5, 2.0]),
        schedule: choices.one_of(&schedules),
        remainder: choices.one_of(&[Remainder::Drawn, Remainder::Last]),
        num_positions: choices.between(1, 3),
        copies: choices.between(1, 2),
        threshold: choices.one_of(&[0.5, 1.5, 2.5]),
    };
    search.progress = choices.one_of(&[0.0, 0.25, 1.0]);
}

fn draw_budget(choices: &mut Choices, search: &mut SearchConfig) {
    let most = (search.width * search.max_completion_len()).max(search.segment_len);
    search.budget = BudgetConfig {
        transfer: choices.one_of(&[Transfer::On, Transfer::Off]),
        total: choices.one_of(&[
            Total::Trajectories,
            Total::Trajectories,
            Total::UniqueTokens,
            Total::PublishedTokens,
        ]),
        max_tokens: choices.between(search.segment_len, most),
        min_width: choices.between(1, search.width.min(3)),
    };
    let (factor, first) = (search.branch_factor, search.initial_divergence);
    search.max_branch_factor = choices.sometimes(factor, factor + 2);
    search.max_initial_divergence = choices.sometimes(first, first + 3);
}

fn draw_fallback(choices: &mut Choices, segment_len: u32) -> FallbackConfig {
    FallbackConfig {
        from: choices.one_of(&[
            FallbackFrom::Answered,
            FallbackFrom::All,
            FallbackFrom::Priority,
            FallbackFrom::Longest,
        ]),
        at: choices.one_of(&[
            FallbackAt::Boundary,
            FallbackAt::Window,
            FallbackAt::LowestLogprob,
            FallbackAt::UnsureBlock,
            FallbackAt::SureBlock,
            FallbackAt::Prompt,
        ]),
        window: choices.sometimes(1, segment_len + 1),
        max_windows: choices.sometimes(1, 3),
        alignment: choices.one_of(&[Alignment::Segment, Alignment::Token]),
        refill: choices.one_of(&[Refill::Late, Refill::Early]),
        copies: choices.sometimes(1, 4),
    }
}

fn draw_stops(choices: &mut Choices) -> StopConfig {
    let num_strings = choices.below(3);
    StopConfig {
        strings: (0..num_strings).map(|_| choices.one_of(&STOP_STRINGS).to_owned()).collect(),
        boxed: choices.one_of(&[Boxed::Ignored, Boxed::Stops]),
        repetition: choices.one_of(&[Repetition::Ignored, Repetition::Tokens, Repetition::Bytes]),
        repetition_len: choices.between(1, 4),
        repetition_count: choices.between(2, 5),
        repetition_window: choices.one_of(&[4, 9, 1000]),
    }
}

fn draw_pruning(choices: &mut Choices) -> PruneConfig {
    let by = choices.one_of(&[PruneBy::Logprob, PruneBy::Entropy, PruneBy::Score]);
    let thresholds = match by {
        PruneBy::Logprob => [-4.0, -3.2, -2.7],
        PruneBy::Entropy => [-2.5, -2.0, -1.7],
        PruneBy::Score | PruneBy::Nothing => [0.05, 0.2, 0.4],
    };
    PruneConfig {
        by,
        window: choices.between(1, 6),
        threshold: choices.one_of(&thresholds),
        warmup_leaves: choices.one_of(&[0, 0, 1, 2, 3]),
        warmup_quantile: choices.one_of(&[0.0, 0.1, 0.5, 0.9, 1.0]),
        leaves: choices.one_of(&[PrunedLeaves::Count, PrunedLeaves::AreReplaced]),
    }
}

/// Nothing else prunes while a threshold is learned from a tree's first leaves.
fn draw_judge(choices: &mut Choices, search: &SearchConfig) -> Judge {
    let prune_permille = choices.one_of(&[0, 100]);
    Judge {
        salt: choices.bits(),
        stop_permille: choices.one_of(&[0, 100]),
        prune_permille: if search.prune.warmup_leaves > 0 { 0 } else { prune_permille },
        max_delay: choices.one_of(&[0, 2, 9]),
    }
}

/// Many rows over a pool of little more than one path: paths take each other's memory all the time.
pub(super) fn draw_storm(choices: &mut Choices, one_path: u32, limits: &mut SchedulerConfig) {
    limits.num_blocks = one_path + choices.below(3) + 1;
    limits.max_num_seqs = choices.one_of(&[3, 7, 64]);
    limits.max_num_batched_tokens = choices.one_of(&[3, 16, 256]);
}
