//! What happened in many runs.

use std::fmt;

use super::rounds::Tally;
use super::simulator::Run;

/// Events that runs with every policy must have.
const POLICY_EVENTS: [&str; 32] = [
    "stop_strings",
    "stop_strings_across_segments",
    "boxed",
    "boxed_across_segments",
    "repetition",
    "verdict_stops",
    "verdict_prunes",
    "score_prunes",
    "confidence_prunes",
    "prunes",
    "replaced_prunes",
    "warmed_up_prunes",
    "drawn_divergences",
    "drawn_factors",
    "forks_lost_without_transfer",
    "token_totals_that_bind",
    "token_totals_that_end_a_tree",
    "early_refills",
    "cuts_inside_segments",
    "weighted_splits",
    "tokens_of_leaves_sampled_anew",
    "late_verdicts",
    "steps_that_only_wait_for_verdicts",
    "snapshots",
    "branch_PathLogprob",
    "branch_MeanLogprob",
    "branch_SegmentLogprob",
    "branch_SegmentEntropy",
    "branch_Score",
    "branch_TokenSurprisal",
    "branch_TokenEntropy",
    "branch_TokenEntropyAbove",
];

/// Events that runs with the default policies have. No path ends by depth: one of `max_depth`
/// segments is full as well.
const DEFAULT_EVENTS: [&str; 6] = [
    "eos",
    "length",
    "restarts_without_candidate",
    "fallback_Answered_Boundary",
    "branch_Even",
    "eos_first_tokens",
];

/// How often what happened, over many runs.
#[derive(Debug, Clone, Default)]
pub struct Report {
    num_runs: u64,
    tally: Tally,
}

impl Report {
    /// A report in which each event that runs should have is known.
    pub fn new() -> Self {
        let mut tally = Tally::default();
        for name in DEFAULT_EVENTS {
            tally.add_events(name, 0);
        }
        for name in POLICY_EVENTS {
            tally.add_events(name, 0);
        }
        for from in ["Answered", "All", "Priority", "Longest"] {
            for at in ["Boundary", "Window", "LowestLogprob", "UnsureBlock", "SureBlock", "Prompt"]
            {
                tally.add_events(&format!("fallback_{from}_{at}"), 0);
            }
        }
        Self { num_runs: 0, tally }
    }

    /// Adds a run.
    pub fn add(&mut self, run: &Run) {
        for (name, count) in run.stats.entries() {
            self.tally.add_events(name, count);
        }
        self.tally.add(&run.tally);
        self.num_runs += 1;
    }

    /// Counter names and sums, by name.
    pub fn events(&self) -> impl Iterator<Item = (&str, u64)> {
        self.tally.entries()
    }

    /// Names of draws and how many standard deviations their sum is off its expected value.
    pub fn biases(&self) -> impl Iterator<Item = (&str, f64)> {
        self.tally.biases()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} runs", self.num_runs)?;
        self.events().try_for_each(|(name, sum)| writeln!(f, "{sum:>10}  {name}"))?;
        self.biases().try_for_each(|(name, bias)| writeln!(f, "{bias:>10.2}  {name}"))
    }
}
