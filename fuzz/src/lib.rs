//! What the fuzz targets draw from their bytes: choices, configurations, limits, tokens.

use arbitrary::Unstructured;
use treepo::search::{
    Alignment, Boxed, BranchBy, BranchConfig, BudgetConfig, FallbackAt, FallbackConfig,
    FallbackFrom, Opportunistic, Prefer, PruneBy, PruneConfig, PrunedLeaves, Refill, Remainder,
    Repetition, StopConfig, TemperatureSchedule, Total, Transfer, Verdict, Verdicts,
};
use treepo::{
    Forest, PathId, Purpose, SampledToken, SchedulerConfig, Search, SearchConfig, Segment,
    TokenTexts, TreeId,
};

pub mod machine;

/// The end-of-sequence token.
pub const EOS: u32 = 0;

/// Texts of the token ids.
pub const TEXTS: [&str; 7] = ["", "a", "b", "stop", "\\boxed{", "}", "ab"];

/// A path and its tree.
pub type Key = (TreeId, PathId);

/// Choices that the fuzzer's bytes make; all are the first option once there are none left.
pub struct Choices<'a>(pub Unstructured<'a>);

impl Choices<'_> {
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn below(&mut self, n: u32) -> u32 {
        self.0.int_in_range(0..=n.max(1) - 1).unwrap_or(0)
    }

    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        low + self.below(high - low + 1)
    }

    pub fn one_of<T: Clone>(&mut self, options: &[T]) -> T {
        options[self.below(options.len() as u32) as usize].clone()
    }

    /// A number of this range, or rarely one that is as large as a number gets.
    pub fn number(&mut self, low: u32, high: u32) -> u32 {
        match self.below(32) {
            31 => u32::MAX - self.below(3),
            _ => self.between(low, high),
        }
    }

    pub fn optional(&mut self, low: u32, high: u32) -> Option<u32> {
        (self.below(3) == 2).then(|| self.number(low, high))
    }

    /// From 0 to 1.
    pub fn fraction(&mut self) -> f32 {
        self.below(101) as f32 / 100.0
    }

    /// One of all ids, or the one behind.
    pub fn id(&mut self, num: usize) -> u32 {
        self.below(num as u32 + 1)
    }

    pub fn prompt(&mut self, longest: u32) -> Vec<u32> {
        let len = self.between(1, longest);
        let vocab = self.one_of(&[1, 3]);
        (0..len).map(|_| self.below(vocab)).collect()
    }

    pub fn token(&mut self) -> SampledToken {
        let id = if self.below(8) == 7 { EOS } else { self.between(1, 6) };
        SampledToken { id, logprob: -4.0 * self.fraction(), entropy: 2.0 * self.fraction() }
    }

    pub fn verdict(&mut self) -> Verdict {
        match self.below(12) {
            0 => Verdict::Stop,
            1 => Verdict::Prune,
            2 => Verdict::Continue { score: f32::NAN },
            _ => Verdict::Continue { score: 4.0 * self.fraction() - 2.0 },
        }
    }

    fn branch(&mut self) -> BranchConfig {
        use BranchBy::{
            Even, MeanLogprob, PathLogprob, Score, SegmentEntropy, SegmentLogprob, TokenEntropy,
            TokenEntropyAbove, TokenSurprisal,
        };
        let by = [Even, PathLogprob, MeanLogprob, SegmentLogprob, SegmentEntropy, Score];
        let by = [&by[..], &[TokenSurprisal, TokenEntropy, TokenEntropyAbove]].concat();
        use TemperatureSchedule::{Constant, Linear, Sinusoid};
        BranchConfig {
            by: self.one_of(&by),
            prefer: self.one_of(&[Prefer::Low, Prefer::High]),
            temperature: self.one_of(&[1.0, 0.1, 1e-30, 1e30]),
            final_temperature: self.one_of(&[1.0, 0.5, f32::MIN_POSITIVE]),
            schedule: self.one_of(&[Constant, Linear, Sinusoid]),
            remainder: self.one_of(&[Remainder::Drawn, Remainder::Last]),
            num_positions: self.number(1, 4),
            copies: self.number(1, 3),
            threshold: 2.0 * self.fraction(),
        }
    }

    fn fallback(&mut self) -> FallbackConfig {
        use FallbackAt::{Boundary, LowestLogprob, Prompt, SureBlock, UnsureBlock, Window};
        use FallbackFrom::{All, Answered, Longest, Nothing, Priority};
        FallbackConfig {
            from: self.one_of(&[Answered, Nothing, All, Priority, Longest]),
            at: self.one_of(&[Boundary, Window, LowestLogprob, UnsureBlock, SureBlock, Prompt]),
            window: self.optional(1, 4),
            max_windows: self.optional(1, 4),
            alignment: self.one_of(&[Alignment::Segment, Alignment::Token]),
            refill: self.one_of(&[Refill::Late, Refill::Early]),
            copies: self.optional(1, 4),
        }
    }

    fn stop(&mut self) -> StopConfig {
        use Repetition::{Bytes, Ignored, Tokens};
        let string = self.one_of(&["", "stop", "bab", "aa"]);
        StopConfig {
            strings: if string.is_empty() { Vec::new() } else { vec![string.into()] },
            boxed: self.one_of(&[Boxed::Ignored, Boxed::Stops]),
            repetition: self.one_of(&[Ignored, Tokens, Bytes]),
            repetition_len: self.number(1, 3),
            repetition_count: self.number(2, 4),
            repetition_window: self.number(1, 9),
        }
    }

    fn prune(&mut self) -> PruneConfig {
        use PruneBy::{Entropy, Logprob, Nothing, Score};
        PruneConfig {
            by: self.one_of(&[Nothing, Logprob, Entropy, Score]),
            window: self.number(1, 5),
            threshold: 4.0 * self.fraction() - 4.0,
            warmup_leaves: self.one_of(&[0, 1, 3, u32::MAX]),
            warmup_quantile: self.fraction(),
            leaves: self.one_of(&[PrunedLeaves::Count, PrunedLeaves::AreReplaced]),
        }
    }

    fn budget(&mut self) -> BudgetConfig {
        use Total::{PublishedTokens, Trajectories, UniqueTokens};
        BudgetConfig {
            transfer: self.one_of(&[Transfer::On, Transfer::Off]),
            total: self.one_of(&[Trajectories, UniqueTokens, PublishedTokens]),
            max_tokens: self.number(1, 80),
            min_width: self.number(1, 4),
        }
    }

    /// Any configuration whose paths have at most `longest` tokens behind the prompt; not all are
    /// valid.
    pub fn search_config(&mut self, longest: u32) -> SearchConfig {
        let judged = [Verdicts::Nothing, Verdicts::Segments];
        SearchConfig {
            width: self.between(1, 9),
            segment_len: self.number(1, 6),
            max_depth: self.number(1, 5),
            branch_factor: self.number(1, 4),
            max_branch_factor: self.optional(1, 6),
            initial_divergence: self.number(1, 4),
            max_initial_divergence: self.optional(1, 6),
            branch: self.branch(),
            budget: self.budget(),
            fallback: self.fallback(),
            stop: self.stop(),
            prune: self.prune(),
            verdicts: self.one_of(&judged),
            opportunistic: self.one_of(&[
                Opportunistic::Off,
                Opportunistic::Off,
                Opportunistic::StepTokens,
            ]),
            step_tokens: self.number(1, 60),
            progress: self.fraction(),
            max_completion_len: Some(self.between(1, longest)),
            max_model_len: self.number(8, 40),
            eos_token_ids: self.one_of(&[vec![EOS], Vec::new()]),
        }
    }

    /// Limits under which a path of `longest` tokens just fits, or more.
    pub fn limits(&mut self, longest: u32) -> SchedulerConfig {
        let block_size = self.one_of(&[1, 2, 3, 4, 16, 64]);
        let more = self.below(30) * self.below(3);
        SchedulerConfig {
            num_blocks: 1 + longest.div_ceil(block_size) + more,
            block_size,
            max_num_seqs: self.between(1, 9),
            max_num_batched_tokens: self.one_of(&[1, 2, 3, 5, 8, 64]),
            admission_percent: self.one_of(&[200, 0, 50, u32::MAX]),
            age_bias: self.one_of(&[32, 0, u32::MAX]),
        }
    }
}

/// The same trees grown segment by segment, without scheduler and memory.
pub fn grow(config: &SearchConfig, prompts: &[(u64, Vec<u32>)]) -> Forest {
    let mut search = Search::new(config.clone(), machine::SEED).expect("a valid configuration");
    search.set_texts(TokenTexts::new(TEXTS)).expect("texts before the first tree");
    for (key, prompt) in prompts {
        search.add_tree(*key, prompt).expect("a tree that the scheduler took");
    }
    let rule = machine::rule();
    while let Some(&Segment { tree, path, .. }) = search.segments().last() {
        let own = search.forest().tree(tree).expect("a tree with a segment");
        let (tokens, stream) =
            (own.tokens(path).expect("its path"), own.paths()[path.index()].stream);
        let token = rule.next(&tokens, stream.uniform(Purpose::Token, tokens.len() as u64));
        search.push_token(tree, path, token).expect("a segment that waits");
    }
    search.into_forest()
}
