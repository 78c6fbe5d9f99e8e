//! The ranges of the configuration's values.

use super::{BranchBy, Opportunistic, PruneBy, SearchConfig, Total, Verdicts};
use crate::error::{Error, Result};

/// Paths that start at the prompt at most: all of them are made at once.
const MAX_INITIAL_PATHS: u32 = 1_000_000;
/// Leaves of a tree at most: a round may fork that many paths at once.
const MAX_WIDTH: u32 = 1 << 24;

impl SearchConfig {
    /// Checks every value. Rules about text also need the texts of the tokens
    /// ([`Search::set_texts`](crate::search::Search::set_texts)).
    ///
    /// # Errors
    /// `InvalidConfig` naming the first field that is out of range, its value and the remedy.
    pub fn check(&self) -> Result<()> {
        self.check_counts()?;
        self.check_pairs()?;
        self.check_numbers()?;
        self.check_used()
    }

    fn check_counts(&self) -> Result<()> {
        let counts = [
            ("width", self.width, 1),
            ("segment_len", self.segment_len, 1),
            ("max_depth", self.max_depth, 1),
            ("branch_factor", self.branch_factor, 1),
            ("initial_divergence", self.initial_divergence, 1),
            ("max_completion_len", self.max_completion_len.unwrap_or(1), 1),
            ("max_model_len", self.max_model_len, 1),
            ("branch.num_positions", self.branch.num_positions, 1),
            ("branch.copies", self.branch.copies, 1),
            ("budget.max_tokens", self.budget.max_tokens, 1),
            ("budget.min_width", self.budget.min_width, 1),
            ("fallback.window", self.fallback.window.unwrap_or(1), 1),
            ("fallback.max_windows", self.fallback.max_windows.unwrap_or(1), 1),
            ("fallback.copies", self.fallback.copies.unwrap_or(1), 1),
            ("stop.repetition_len", self.stop.repetition_len, 1),
            ("stop.repetition_count", self.stop.repetition_count, 2),
            ("stop.repetition_window", self.stop.repetition_window, 1),
            ("prune.window", self.prune.window, 1),
            ("step_tokens", self.step_tokens, 1),
        ];
        counts.into_iter().try_for_each(|(field, value, least)| {
            valid(value >= least, field, || format!("must be at least {least}, got {value}"))
        })?;
        let most = [
            ("width", self.width, MAX_WIDTH),
            ("initial_divergence", self.initial_divergence, MAX_INITIAL_PATHS),
            ("max_initial_divergence", self.max_initial_divergence.unwrap_or(1), MAX_INITIAL_PATHS),
        ];
        most.into_iter().try_for_each(|(field, value, most)| {
            valid(value <= most, field, || format!("must be at most {most}, got {value}"))
        })?;
        valid(!self.stop.strings.iter().any(String::is_empty), "stop.strings", || {
            "got an empty string, which would end every path; remove it".into()
        })
    }

    /// Numbers that must not lie below another one.
    fn check_pairs(&self) -> Result<()> {
        let pairs = [
            ("max_branch_factor", self.max_branch_factor, "branch_factor", self.branch_factor),
            (
                "max_initial_divergence",
                self.max_initial_divergence,
                "initial_divergence",
                self.initial_divergence,
            ),
            (
                "budget.max_tokens",
                (self.budget.total != Total::Trajectories).then_some(self.budget.max_tokens),
                "segment_len",
                self.segment_len,
            ),
            (
                "step_tokens",
                (self.opportunistic != Opportunistic::Off).then_some(self.step_tokens),
                "segment_len",
                self.segment_len,
            ),
        ];
        pairs.into_iter().try_for_each(|(field, value, other, least)| {
            valid(value.is_none_or(|value| value >= least), field, || {
                let value = value.unwrap_or_default();
                format!(
                    "must be at least {other} ({least}), got {value}; raise it or lower {other}"
                )
            })
        })
    }

    fn check_numbers(&self) -> Result<()> {
        let temperatures = [
            ("branch.temperature", self.branch.temperature),
            ("branch.final_temperature", self.branch.final_temperature),
        ];
        for (field, value) in temperatures {
            valid(value.is_finite() && value > 0.0, field, || {
                format!("must be above 0 and finite, got {value}; 1 is neutral")
            })?;
        }
        let fractions =
            [("prune.warmup_quantile", self.prune.warmup_quantile), ("progress", self.progress)];
        for (field, value) in fractions {
            valid((0.0..=1.0).contains(&value), field, || {
                format!("must be from 0 to 1, got {value}")
            })?;
        }
        let thresholds = [
            ("branch.threshold", self.branch.threshold),
            ("prune.threshold", self.prune.threshold),
        ];
        thresholds.into_iter().try_for_each(|(field, value)| {
            valid(value.is_finite(), field, || format!("must be finite, got {value}"))
        })
    }

    /// What one rule needs of another.
    fn check_used(&self) -> Result<()> {
        let by_score = [
            ("branch.by", self.branch.by == BranchBy::Score),
            ("prune.by", self.prune.by == PruneBy::Score),
        ];
        by_score.into_iter().try_for_each(|(field, is_used)| {
            valid(!is_used || self.verdicts == Verdicts::Segments, field, || {
                "is score, but nobody gives scores; set verdicts to segments".into()
            })
        })
    }
}

fn valid(holds: bool, field: &'static str, message: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::InvalidConfig { field, message: message() }) }
}
